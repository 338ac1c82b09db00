//! A model for exhaustive search (stateright) of work on objects behind the fence: late and repeated writes of two
//! holders, caches of two API servers that show any version of the shard table or none, clusters that are deleted and
//! created again under the same name, and users who edit, copy, restore and remove tokens.
//!
//! The other model covers the creation of the table. Here it is a list of versions: the first holder, the
//! second, the first again, and then another table. Nobody works under a version before it is stored.

use std::collections::BTreeMap;

use stateright::{Model, Property};

use crate::fence::{self, FenceRule};
use crate::server::Sabotage;
use shard_ownership::hash::ShardId;
use shard_ownership::lease::Version;
use shard_ownership::table::{Entry, ShardTable};
use shard_ownership::token::{EPOCH_MAX, FencingToken, ObservedToken};

const SHARD: ShardId = ShardId(0);
/// Rounds within which everything must have recovered.
const ROUNDS: usize = 4;

/// The versions of the table, in order: uid, epoch and holder.
const VERSIONS: [(&str, u32, &str); 4] = [
    ("t1", 1, "a"),
    ("t1", 2, "b"),
    ("t1", 3, "a"),
    ("t2", 1, "b"),
];

/// What is searched.
#[derive(Clone, Debug, Default)]
pub struct ObjectsModel {
    /// Edits by users in one run.
    pub edits_max: u8,
    /// What is switched off.
    pub sabotage: Sabotage,
}

/// A place for a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// The annotation of the cluster's child.
    Child,
    /// The status of the cluster.
    Status,
    /// The annotation of another cluster's child, in the same shard.
    Other,
    /// The annotation of the claim, which outlives its cluster.
    Claim,
}

const PLACES: [Place; 4] = [Place::Child, Place::Status, Place::Other, Place::Claim];

/// What an API server has in its cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cached {
    /// This version of the table.
    At(usize),
    /// No table.
    Absent,
}

/// What a write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// It writes the object and leaves its token there.
    Put,
    /// It deletes the claim, if that is as the writer saw it.
    Delete,
}

/// A write on its way: under which version of the table, and for which life of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sent {
    verb: Verb,
    place: Place,
    version: usize,
    life: u8,
    /// The version of the object that it replaces, where it names one.
    base: u8,
}

/// What users do to a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Edit {
    /// They raise the epoch to the highest.
    Forge,
    /// They copy it from another place.
    Copy(Place),
    /// They put back what the operator wrote there first.
    Restore,
    /// They remove it.
    Remove,
}

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The shard changes hands, or the table is replaced.
    Move,
    /// The holder sends a write.
    Send(Verb, Place),
    /// A write arrives at an API server with this in its cache.
    Arrive(usize, Cached),
    /// Users edit a token.
    Edit(Place, Edit),
    /// The cluster is deleted, then another is created under its name.
    Recreate,
}

/// One place, and what has become of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Register {
    text: Option<String>,
    /// What the operator wrote first.
    first: Option<String>,
    /// What the operator wrote last, since the last edit.
    last: Option<FencingToken>,
    reports: u8,
}

/// One moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Objects {
    version: usize,
    /// Which cluster of that name it is.
    life: u8,
    registers: BTreeMap<Place, Register>,
    /// Life of the cluster in the claim's label, and the claim's version; none: there is no claim.
    claim: Option<(u8, u8)>,
    sent: Vec<Sent>,
    edits: u8,
    /// The promise that was broken.
    pub violation: Option<String>,
}

fn token(version: usize) -> FencingToken {
    let (table, epoch, holder) = VERSIONS[version];
    FencingToken {
        table: table.into(),
        shard: SHARD,
        epoch,
        holder: holder.into(),
    }
}

fn table(version: usize) -> ShardTable {
    let (uid, epoch, holder) = VERSIONS[version];
    let entry = Entry {
        epoch,
        holder: holder.into(),
        incarnation: holder.into(),
    };
    ShardTable {
        version: Version {
            uid: uid.into(),
            resource_version: version.to_string(),
        },
        shards: 1,
        entries: BTreeMap::from([(SHARD, entry)]),
    }
}

fn uid(life: u8) -> String {
    format!("c{life}")
}

impl Objects {
    /// The uid of the cluster that the tokens there must name.
    fn cluster_of(&self, place: Place) -> String {
        match place {
            Place::Child | Place::Status => uid(self.life),
            Place::Other => "d".into(),
            Place::Claim => self.claim.map_or_else(String::new, |(life, _)| uid(life)),
        }
    }

    fn send(&mut self, verb: Verb, place: Place) {
        let base = self.claim.map_or(0, |(_, version)| version);
        let sent = Sent {
            verb,
            place,
            version: self.version,
            life: self.life,
            base,
        };
        self.sent.push(sent);
    }

    /// A write arrives. Says which rule refused it.
    fn arrive(
        &mut self,
        sabotage: &Sabotage,
        sent: &Sent,
        cached: Cached,
    ) -> Result<(), FenceRule> {
        let token = token(sent.version);
        let known = match cached {
            Cached::At(version) => Some(table(version)),
            Cached::Absent => None,
        };
        let of_writer = match sent.place {
            Place::Other => "d".to_owned(),
            Place::Child | Place::Status | Place::Claim => uid(sent.life),
        };
        // What was created for one life of the cluster does not exist for the next.
        let fits = match sent.place {
            Place::Claim => self.claim.is_some_and(|(_, version)| version == sent.base),
            Place::Child | Place::Status => sent.life == self.life,
            Place::Other => true,
        };
        if !fits {
            return Ok(());
        }
        let register = &self.registers[&sent.place];
        let text = register.text.as_deref();
        // The order rule checks whether the old token counts for the previous object.
        let cluster = self.cluster_of(sent.place);
        fence::admit(sabotage, known.as_ref(), text, &token, &cluster)?;
        if sent.place == Place::Claim && !self.may_change_claim(sabotage, sent, &cluster) {
            return Err(FenceRule::Holder);
        }
        match sent.verb {
            Verb::Delete => {
                if cluster != of_writer {
                    self.violation = Some(format!(
                        "the claim of {cluster} was deleted for {of_writer}: {sent:?}"
                    ));
                }
                self.claim = None;
                self.registers.insert(Place::Claim, Register::default());
            }
            Verb::Put => self.put(sent, token, of_writer),
        }
        Ok(())
    }

    /// A claim is deleted only for the uid in its label, by one whose token is on it already; it is re-labelled only
    /// for a cluster that is not being deleted.
    fn may_change_claim(&self, sabotage: &Sabotage, sent: &Sent, labelled: &str) -> bool {
        let text = self.registers[&Place::Claim].text.as_deref();
        let on_it = text.and_then(ObservedToken::parse);
        match sent.verb {
            Verb::Put => true,
            Verb::Delete => {
                sabotage.no_cluster_uid
                    || (uid(sent.life) == labelled
                        && on_it.is_some_and(|token| token.cluster == labelled))
            }
        }
    }

    fn put(&mut self, sent: &Sent, token: FencingToken, cluster: String) {
        if sent.place == Place::Claim {
            self.claim = self.claim.map(|(_, version)| (sent.life, version + 1));
        }
        let Some(register) = self.registers.get_mut(&sent.place) else {
            return;
        };
        let text = token.for_cluster(&cluster);
        register.first.get_or_insert_with(|| text.clone());
        let known = register.text.as_deref().and_then(ObservedToken::parse);
        let same_cluster = known.is_some_and(|known| known.cluster == cluster);
        let last = register.last.as_ref();
        let falls = last.is_some_and(|last| last.table == token.table && token.epoch < last.epoch);
        if falls && same_cluster {
            self.violation = Some(format!(
                "{:?} was written under {token} after {last:?}",
                sent.place
            ));
        }
        register.text = Some(text);
        register.last = Some(token);
    }

    fn edit(&mut self, place: Place, edit: Edit) {
        self.edits += 1;
        let copied = match edit {
            Edit::Copy(from) => self.registers[&from].text.clone(),
            Edit::Forge | Edit::Restore | Edit::Remove => None,
        };
        let (cluster, now) = (self.cluster_of(place), VERSIONS[self.version].0);
        let Some(register) = self.registers.get_mut(&place) else {
            return;
        };
        register.text = match edit {
            Edit::Forge => Some(format!("{now}/000/{EPOCH_MAX}/x/{cluster}")),
            Edit::Copy(_) => copied,
            Edit::Restore => register.first.clone(),
            Edit::Remove => None,
        };
        register.last = None;
    }

    fn recreate(&mut self) {
        self.life += 1;
        for place in [Place::Child, Place::Status] {
            self.registers.insert(place, Register::default());
        }
    }

    /// After the last fault, the holder's writes succeed everywhere; where a token is forged, one report does,
    /// and the rest once the user has removed it.
    fn comes_right(mut self, sabotage: &Sabotage) -> Result<(), String> {
        let cached = Cached::At(self.version);
        for place in PLACES {
            for _ in 0..ROUNDS {
                if place == Place::Claim && self.claim.is_none() {
                    break;
                }
                self.send(Verb::Put, place);
                let Some(sent) = self.sent.pop() else { break };
                match self.arrive(sabotage, &sent, cached) {
                    Ok(()) => break,
                    Err(rule) => self.after_refusal(place, rule)?,
                }
            }
            let there = self.registers[&place].text.clone();
            let mine = there.as_deref().and_then(ObservedToken::parse);
            let is_mine = mine.is_some_and(|mine| mine.epoch == VERSIONS[self.version].1);
            if !is_mine && (place != Place::Claim || self.claim.is_some()) {
                return Err(format!("no work gets through at {place:?}: {there:?}"));
            }
        }
        self.violation.map_or(Ok(()), Err)
    }

    /// What the operator does when the rightful holder is refused: it reports a forged token once, elsewhere; the
    /// user removes it.
    fn after_refusal(&mut self, place: Place, rule: FenceRule) -> Result<(), String> {
        let Some(register) = self.registers.get_mut(&place) else {
            return Ok(());
        };
        // The operator wrote it itself: then it is not forged.
        if rule != FenceRule::Order || register.last.is_some() {
            let text = &register.text;
            return Err(format!(
                "{rule:?} refuses the holder at {place:?}: {text:?}"
            ));
        }
        register.reports += 1;
        if register.reports > 1 {
            return Err(format!("{place:?} is reported again and again"));
        }
        *register = Register {
            reports: register.reports,
            ..Register::default()
        };
        Ok(())
    }
}

impl Model for ObjectsModel {
    type State = Objects;
    type Action = Step;

    fn init_states(&self) -> Vec<Objects> {
        vec![Objects {
            version: 0,
            life: 0,
            registers: PLACES.map(|place| (place, Register::default())).into(),
            claim: Some((0, 0)),
            sent: Vec::new(),
            edits: 0,
            violation: None,
        }]
    }

    fn actions(&self, objects: &Objects, steps: &mut Vec<Step>) {
        if objects.violation.is_some() {
            return;
        }
        if objects.version + 1 < VERSIONS.len() {
            steps.push(Step::Move);
        }
        if objects.life < 1 {
            steps.push(Step::Recreate);
        }
        if objects.sent.len() < 2 {
            steps.extend(PLACES.map(|place| Step::Send(Verb::Put, place)));
            steps.push(Step::Send(Verb::Delete, Place::Claim));
        }
        let caches = (0..=objects.version)
            .map(Cached::At)
            .chain([Cached::Absent]);
        for index in 0..objects.sent.len() {
            steps.extend(caches.clone().map(|cached| Step::Arrive(index, cached)));
        }
        if objects.edits < self.edits_max {
            for place in PLACES {
                let copies = PLACES.into_iter().filter(|from| *from != place);
                steps.extend(copies.map(|from| Step::Edit(place, Edit::Copy(from))));
                let others = [Edit::Forge, Edit::Restore, Edit::Remove];
                steps.extend(others.map(|edit| Step::Edit(place, edit)));
            }
        }
    }

    fn next_state(&self, objects: &Objects, step: Step) -> Option<Objects> {
        let mut next = objects.clone();
        match step {
            Step::Move => next.version += 1,
            Step::Send(verb, place) => next.send(verb, place),
            Step::Arrive(index, cached) => {
                let sent = next.sent.remove(index);
                // The rejected writer gets no report here: it may be dead.
                let _refused_by: Result<(), FenceRule> = next.arrive(&self.sabotage, &sent, cached);
            }
            Step::Edit(place, edit) => next.edit(place, edit),
            Step::Recreate => next.recreate(),
        }
        if next.violation.is_none() {
            next.violation = next.clone().comes_right(&self.sabotage).err();
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("the promises are kept", |_, objects: &Objects| {
                objects.violation.is_none()
            }),
            Property::sometimes("a claim changes hands", |_, objects: &Objects| {
                objects.claim.is_some_and(|(life, _)| life == 1)
            }),
        ]
    }
}
