//! What 1,000,000 clusters on 50 replicas need: the placement is computed by the code that replicas run, on as many
//! uids; memory and CPU are calculated from what one cluster took in the measurements.

use std::collections::BTreeMap;
use std::fmt::Write;

use shard_ownership::benchmarks::RankedMembers;
use shard_ownership::hash::{BadShardCount, Bucket, ShardCount, ShardId};

use super::growth::line;
use super::results::{Benchmark, Results};
use super::side::Side;
use super::table::{grouped, number};
use crate::multiply::uid;

const CLUSTERS: usize = 1_000_000;
const REPLICAS: usize = 50;
const SHARDS: u64 = 256;
/// `--renew-interval`.
const RENEWALS_PER_SECOND: f64 = 0.5;
/// The DatabaseCluster, its StatefulSet, three Services, Secret, ConfigMap and budget; Pods and claims come on top.
const OBJECTS_EACH: usize = 8;
const SECONDS_PER_DAY: f64 = 86_400.0;
/// What Kubernetes names Pods with.
const SUFFIX: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Shards with the number of clusters in each, and their holders.
struct Fleet {
    count: ShardCount,
    clusters: Vec<usize>,
    holders: Vec<Option<String>>,
}

/// The least, the mean and the most.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    least: usize,
    mean: f64,
    most: usize,
}

impl Spread {
    #[allow(clippy::cast_precision_loss)]
    fn of(values: &[usize]) -> Self {
        Self {
            least: values.iter().copied().min().unwrap_or(0),
            mean: values.iter().sum::<usize>() as f64 / values.len().max(1) as f64,
            most: values.iter().copied().max().unwrap_or(0),
        }
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn row(self, what: &str) -> String {
        let mean = match self.mean {
            mean if mean < 100.0 => number(mean),
            mean => grouped(mean.round() as usize),
        };
        format!(
            "| {what} | {} | {mean} | {} |\n",
            grouped(self.least),
            grouped(self.most)
        )
    }
}

fn names(replicas: usize) -> Vec<String> {
    // As Pods of a Deployment are named.
    let mut random = fastrand::Rng::with_seed(2);
    let letter =
        |random: &mut fastrand::Rng| random.choice(SUFFIX).copied().map_or('b', char::from);
    let name = |_| {
        let suffix: String = (0..5).map(|_| letter(&mut random)).collect();
        format!("databasecluster-operator-6d4f9c7b5-{suffix}")
    };
    (0..replicas).map(name).collect()
}

impl Fleet {
    fn new(clusters: usize, shards: u64, members: &[String]) -> Result<Self, BadShardCount> {
        let count = ShardCount::new(shards)?;
        let mut random = fastrand::Rng::with_seed(1);
        let mut counts = vec![0; usize::from(count.get())];
        for _ in 0..clusters {
            let shard = count.shard_of(Bucket::of(&uid(&mut random)));
            counts[usize::from(shard.0)] += 1;
        }
        let holders = RankedMembers::new(count, members).place(&BTreeMap::new());
        Ok(Self {
            count,
            clusters: counts,
            holders,
        })
    }

    /// Shards and clusters of each member.
    fn shares(&self, members: &[String]) -> (Vec<usize>, Vec<usize>) {
        let of = |member: &String| {
            let own = self.holders.iter().zip(&self.clusters);
            let own = own.filter(|(holder, _)| holder.as_ref() == Some(member));
            own.fold((0, 0), |(shards, clusters), (_, more)| {
                (shards + 1, clusters + more)
            })
        };
        members.iter().map(of).unzip()
    }

    /// Which shards change hands when these are the members, and who then has them.
    fn moves(&self, members: &[String]) -> Vec<(ShardId, Option<String>)> {
        let held = self.count.shards().zip(&self.holders);
        let held = held.filter_map(|(shard, holder)| Some((shard, holder.as_deref()?)));
        let placed = RankedMembers::new(self.count, members).place(&held.collect());
        let changed = self.count.shards().zip(placed).zip(&self.holders);
        changed
            .filter(|((_, new), old)| new != *old)
            .map(|(new, _)| new)
            .collect()
    }

    fn clusters_in(&self, moves: &[(ShardId, Option<String>)]) -> usize {
        let each = moves
            .iter()
            .map(|(shard, _)| self.clusters[usize::from(shard.0)]);
        each.sum()
    }
}

/// Both parts, in Markdown.
pub(crate) fn markdown(results: &Results) -> Result<String, BadShardCount> {
    let members = names(REPLICAS);
    let fleet = Fleet::new(CLUSTERS, SHARDS, &members)?;
    let (shards, clusters) = fleet.shares(&members);
    let clusters = Spread::of(&clusters);
    let mut text = format!(
        "Simulated, {} clusters with random uids, {REPLICAS} replicas, `--shards={SHARDS}`:\n\n",
        grouped(CLUSTERS)
    );
    text.push_str("| | least | mean | most |\n| --- | --- | --- | --- |\n");
    text.push_str(&Spread::of(&fleet.clusters).row("clusters in a shard"));
    text.push_str(&Spread::of(&shards).row("shards of a replica"));
    text.push_str(&clusters.row("clusters of a replica"));
    text.push('\n');
    changes(&fleet, &members, &mut text);
    heartbeats(&mut text);
    calculated(results, clusters, &mut text);
    Ok(text)
}

/// What a join and a death move.
fn changes(fleet: &Fleet, members: &[String], text: &mut String) {
    let joined = fleet.moves(&names(REPLICAS + 1));
    let left = fleet.moves(&members[1..]);
    let mut successors: BTreeMap<&str, usize> = BTreeMap::new();
    for holder in left.iter().filter_map(|(_, holder)| holder.as_deref()) {
        *successors.entry(holder).or_insert(0) += 1;
    }
    let _infallible = writeln!(
        text,
        "- A replica that joins gets {} shards with {} clusters, at most an eighth of all shards at once.\n\
         - The {} shards of a replica that dies go to {} others, at most {} to each; {} clusters are listed again.",
        joined.len(),
        grouped(fleet.clusters_in(&joined)),
        left.len(),
        successors.len(),
        successors.values().max().unwrap_or(&0),
        grouped(fleet.clusters_in(&left)),
    );
}

fn heartbeats(text: &mut String) {
    let replicas = f64::from(u32::try_from(REPLICAS).unwrap_or(u32::MAX));
    let writes = replicas * RENEWALS_PER_SECOND;
    let _infallible = writeln!(
        text,
        "- Heartbeats are {writes:.0} writes a second, each seen by {REPLICAS} watches: {} events a second in all, {writes:.0} for each replica. \
         They grow with the square of the number of replicas, and not with that of the clusters.\n\
         - etcd has {} million objects without Pods and claims.",
        number(writes * replicas),
        CLUSTERS * OBJECTS_EACH / 1_000_000
    );
}

/// What the measured cost of one cluster makes of it.
fn calculated(results: &Results, clusters: Spread, text: &mut String) {
    if results.sizes.is_empty() {
        return;
    }
    text.push_str("\nCalculated from the tables above:\n\n");
    let most = f64::from(u32::try_from(clusters.most).unwrap_or(u32::MAX));
    if let Some(line) = line(results, Side::OperatorAlone, Benchmark::PeakMemory) {
        let _infallible = writeln!(
            text,
            "- Memory of the largest replica at its peak: {} MB, by the line of one replica.",
            number(line.at_zero + line.per_cluster * most)
        );
    }
    let Some(largest) = results.sizes.last() else {
        return;
    };
    let all = f64::from(u32::try_from(CLUSTERS).unwrap_or(u32::MAX));
    let per_second = all / SECONDS_PER_DAY;
    let costs = [
        (Side::Operator, Benchmark::ChangeCpu, "of all replicas"),
        (
            Side::Operator,
            Benchmark::ChangeServerCpu,
            "of the API server",
        ),
    ];
    for (side, benchmark, whose) in costs {
        if let Some(each) = largest.median(side, benchmark) {
            let _infallible = writeln!(
                text,
                "- CPU {whose} when each cluster changes once a day ({} changes a second): {} cores, at {} ms for each.",
                number(per_second),
                number(per_second * each / 1e3),
                number(each)
            );
        }
    }
    let created = results.sizes.iter().rev();
    let created =
        created.filter_map(|size| size.median(Side::Operator, Benchmark::CreateServerCpu));
    if let Some(each) = created.into_iter().next() {
        let _infallible = writeln!(
            text,
            "- CPU of the API server to create all of them: {} core hours, at {} ms for each.",
            number(all * each / 3.6e6),
            number(each)
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn fifty_replicas_share_a_million_clusters_evenly() {
        let members = names(REPLICAS);
        let fleet = Fleet::new(CLUSTERS, SHARDS, &members).unwrap();
        let (shards, clusters) = fleet.shares(&members);
        assert_eq!(
            (shards.iter().min(), shards.iter().max()),
            (Some(&5), Some(&6))
        );
        let spread = Spread::of(&clusters);
        // Six shards of 256, with four times the deviation of as many random uids.
        assert!(spread.most < 24_100 && spread.least > 19_000, "{spread:?}");
        assert_eq!(clusters.iter().sum::<usize>(), CLUSTERS);
    }

    #[test]
    fn joins_and_deaths_move_no_more_than_a_share() {
        let members = names(REPLICAS);
        let fleet = Fleet::new(CLUSTERS, SHARDS, &members).unwrap();
        assert!(fleet.moves(&members).is_empty());
        assert!((5..=6).contains(&fleet.moves(&names(REPLICAS + 1)).len()));
        assert!((5..=6).contains(&fleet.moves(&members[1..]).len()));
    }
}
