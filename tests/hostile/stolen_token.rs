//! An attacker with the Pod-bound token of one replica, and with the fencing tokens under which that replica writes.

use kube::Client;
use serde_json::{Value, json};
use testbed::control_plane::client_from;
use testbed::fencing::{self, Token};

use crate::checker::Checker;
use crate::environment::*;
use crate::requests::*;

const SYSTEM: &str = "databasecluster-system";
const TABLE: &str = "databasecluster-shards";
/// The name of one policy, and the start of the other one's.
const LIMITS: &str = "databasecluster-limits";
const NAMESPACES: &str = "databasecluster-limits-namespaces";
const HOLDER: &str = "databasecluster-fence-holder";
const CLUSTERS: &str = "databasecluster-fence-clusters";
const ORDER: &str = "databasecluster-fence-order";
const LEASES: &str = "databasecluster-fence-leases";
const ENTRIES: &str = "databasecluster-fence-table";

struct Thief<'a> {
    environment: &'a Environment<'a>,
    client: Client,
    /// The replica whose token was stolen.
    name: String,
    kubeconfig: std::path::PathBuf,
    /// A cluster in one of its shards.
    own: Victim,
    /// A cluster in a shard of another replica.
    other: Victim,
}

pub(crate) async fn attacks(environment: &Environment<'_>, checker: &mut Checker) {
    let thief = Thief::new(environment).await;
    thief.pods_of_the_system().await;
    checker
        .unharmed(environment, "stolen token: Pods of kube-system")
        .await;
    thief.stateful_sets().await;
    thief.services().await;
    thief.secrets().await;
    checker
        .unharmed(
            environment,
            "stolen token: StatefulSets, Services and Secrets",
        )
        .await;
    thief.clusters().await;
    checker
        .unharmed(environment, "stolen token: DatabaseClusters")
        .await;
    thief.children_of_others().await;
    thief.objects_of_tenants().await;
    checker
        .unharmed(environment, "stolen token: children of others")
        .await;
    thief.leases().await;
    thief.entries().await;
    checker
        .unharmed(environment, "stolen token: Leases and the shard table")
        .await;
    thief.system_namespace().await;
    thief.beyond_its_rights().await;
    checker
        .unharmed(environment, "stolen token: Secrets, Pods, nodes, roles")
        .await;
    thief.what_remains().await;
    checker
        .unharmed(
            environment,
            "stolen token: dry runs of what remains possible",
        )
        .await;
}

impl<'a> Thief<'a> {
    async fn new(environment: &'a Environment<'a>) -> Self {
        let replica = &environment.fleet.replicas()[0];
        let find = |own: bool| {
            let mut victims = environment.victims.iter();
            let found = victims.find(|victim| (victim.holder == replica.name()) == own);
            found.expect("a victim of each kind").clone()
        };
        Self {
            environment,
            client: client_from(replica.kubeconfig()).await.unwrap(),
            name: replica.name().to_owned(),
            kubeconfig: replica.kubeconfig().to_owned(),
            own: find(true),
            other: find(false),
        }
    }

    fn token(&self, victim: &Victim) -> String {
        self.environment.token(victim).to_string()
    }

    /// What a child of the victim has to have to be written by the holder.
    fn metadata(&self, victim: &Victim) -> Value {
        json!({
            "labels": {"database.io/bucket": testbed::shards::bucket(&victim.uid).to_string()},
            "annotations": {fencing::ANNOTATION: self.token(victim)},
            "ownerReferences": owned_by(&victim.uid, &victim.name),
        })
    }

    async fn pods_of_the_system(&self) {
        let pod = json!({
            "metadata": {"labels": {"database.io/bucket": "0"}},
            "spec": {
                "nodeName": "fake-0", "hostPID": true,
                "containers": [{"name": "c", "image": "good", "securityContext": {"privileged": true}}],
            },
        });
        let admin = &self.environment.admin;
        for namespace in ["kube-system", BUSY] {
            let at = at("Pod", namespace, "node-agent");
            let created = let_through(
                "a Pod of the administrator",
                create(admin, at, pod.clone()).await,
            );
            let mut containers = created.data["spec"]["containers"].clone();
            containers[0]["image"] = json!("evil");
            let mut evil = json!({
                "metadata": self.metadata(&self.own), "spec": {"containers": containers},
            });
            evil["metadata"]
                .as_object_mut()
                .unwrap()
                .remove("ownerReferences");
            refused(
                "another image",
                merge(&self.client, at, evil.clone()).await,
                LIMITS,
            );
            evil.as_object_mut().unwrap().remove("spec");
            evil["metadata"]["labels"]["app"] = json!("other");
            refused("another label", merge(&self.client, at, evil).await, LIMITS);
            let created = get(admin, at).await.unwrap();
            let without_token = delete_exactly(&self.client, at, &created).await;
            refused("a deletion without a fencing token", without_token, ORDER);
            refused(
                "a deletion of any",
                delete(&self.client, at).await,
                "databasecluster-",
            );
            let pod = pod.clone();
            let other = crate::requests::at("Pod", namespace, "another");
            refused(
                "a Pod of its own",
                create(&self.client, other, pod).await,
                "cannot create",
            );
            let_through("its removal", delete(admin, at).await);
        }
    }

    fn stateful_set(&self, pod: Value) -> Value {
        json!({
            "metadata": self.metadata(&self.own),
            "spec": {
                "replicas": 1, "serviceName": "s", "selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod},
            },
        })
    }

    async fn stateful_sets(&self) {
        let at = at("StatefulSet", QUIET, "evil-db");
        let harmless = json!({
            "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "evil", "securityContext": {"allowPrivilegeEscalation": false}}],
        });
        let with = |change: Value| {
            let mut pod = harmless.clone();
            json_patch(&mut pod, &change);
            pod
        };
        let container = |change: Value| {
            let mut pod = harmless.clone();
            json_patch(&mut pod["containers"][0], &change);
            pod
        };
        let secret = json!({"secretKeyRef": {"name": "others", "key": "k"}});
        for (what, pod) in [
            (
                "hostPath",
                with(json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]})),
            ),
            (
                "a Secret of others",
                with(json!({"volumes": [{"name": "v", "secret": {"secretName": "others"}}]})),
            ),
            (
                "a projected token",
                with(json!({"volumes": [{"name": "v", "projected": {"sources": [
                {"serviceAccountToken": {"path": "t"}}]}}]})),
            ),
            (
                "a claim",
                with(
                    json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}),
                ),
            ),
            ("hostNetwork", with(json!({"hostNetwork": true}))),
            ("hostPID", with(json!({"hostPID": true}))),
            ("hostIPC", with(json!({"hostIPC": true}))),
            ("a node", with(json!({"nodeName": "fake-0"}))),
            ("an account", with(json!({"serviceAccountName": "default"}))),
            (
                "the account's token",
                with(json!({"automountServiceAccountToken": true})),
            ),
            (
                "privileged",
                container(
                    json!({"securityContext": {"privileged": true, "allowPrivilegeEscalation": null}}),
                ),
            ),
            (
                "capabilities",
                container(json!({"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}})),
            ),
            (
                "a host port",
                container(json!({"ports": [{"containerPort": 1, "hostPort": 1}]})),
            ),
            (
                "env of others",
                container(json!({"env": [{"name": "e", "valueFrom": secret}]})),
            ),
            (
                "all env of others",
                container(json!({"envFrom": [{"secretRef": {"name": "others"}}]})),
            ),
            (
                "escalation",
                container(json!({"securityContext": {"allowPrivilegeEscalation": true}})),
            ),
            (
                "an init container",
                with(json!({"initContainers": [
                {"name": "i", "image": "evil", "securityContext": {"privileged": true}}]})),
            ),
        ] {
            refused(
                what,
                create(&self.client, at, self.stateful_set(pod)).await,
                LIMITS,
            );
        }
        let mut nobodys = self.stateful_set(harmless.clone());
        nobodys["metadata"]["ownerReferences"] = json!([]);
        refused(
            "no owner",
            create(&self.client, at, nobodys).await,
            "databasecluster-",
        );
        let mut foreign = self.stateful_set(harmless);
        foreign["metadata"]["ownerReferences"] = owned_by(&self.other.uid, &self.other.name);
        refused("another's", create(&self.client, at, foreign).await, ORDER);
    }

    /// Kubernetes adds credentials to a Secret of this type.
    async fn secrets(&self) {
        let mut secret = json!({
            "metadata": self.metadata(&self.own), "type": "kubernetes.io/service-account-token",
        });
        secret["metadata"]["annotations"]["kubernetes.io/service-account.name"] = json!("default");
        let at = at("Secret", QUIET, "evil-app");
        refused(
            "a token of an account",
            create(&self.client, at, secret).await,
            LIMITS,
        );
    }

    /// Objects that no controller owns.
    async fn objects_of_tenants(&self) {
        let admin = &self.environment.admin;
        for kind in ["ConfigMap", "Service"] {
            let at = at(kind, BUSY, "plain");
            let object = json!({"metadata": {}, "spec": {"ports": [{"port": 1}]}});
            let_through("an object", create(admin, at, object).await);
            let taken = json!({"metadata": self.metadata(&self.own)});
            refused(
                "a tenant's object",
                merge(&self.client, at, taken).await,
                ORDER,
            );
            let_through("its removal", delete(admin, at).await);
        }
    }

    async fn services(&self) {
        let at = at("Service", QUIET, "evil");
        for spec in [
            json!({"type": "NodePort", "ports": [{"port": 1}]}),
            json!({"type": "LoadBalancer", "ports": [{"port": 1}]}),
            json!({"type": "LoadBalancer", "ports": [{"port": 1}], "selector": {"app": "victim"}}),
            json!({"type": "ExternalName", "externalName": "evil.example"}),
            json!({"externalIPs": ["10.0.0.1"], "ports": [{"port": 1}]}),
        ] {
            let what = spec.to_string();
            let service = json!({"metadata": self.metadata(&self.own), "spec": spec});
            refused(&what, create(&self.client, at, service).await, LIMITS);
        }
    }

    async fn clusters(&self) {
        let own = at("DatabaseCluster", QUIET, &self.own.name);
        for change in [
            json!({"spec": {"storage": {"retain": "Delete"}}}),
            json!({"spec": {"image": "evil"}}),
            json!({"spec": {"replicas": 0}}),
            json!({"metadata": {"labels": {"a": "b"}}}),
            json!({"metadata": {"finalizers": ["example.com/block"]}}),
            json!({"metadata": {"ownerReferences": owned_by(&self.other.uid, &self.other.name)}}),
            json!({"metadata": {"annotations": {"a": "b"}}}),
        ] {
            let what = change.to_string();
            let mut change = change;
            change["metadata"]["annotations"][fencing::ANNOTATION] = json!(self.token(&self.own));
            refused(&what, merge(&self.client, own, change).await, LIMITS);
        }
        let other = at("DatabaseCluster", QUIET, &self.other.name);
        for (token, policy) in [
            (self.token(&self.other), CLUSTERS),
            (self.token(&self.own), ORDER),
            (
                self.environment.forged(&self.own.shard, &self.other.uid),
                CLUSTERS,
            ),
        ] {
            let written = merge(&self.client, other, annotation(token.clone())).await;
            refused(&token, written, policy);
        }
        refused(
            "a deletion",
            delete(&self.client, other).await,
            "cannot delete",
        );
        let new = json!({"metadata": self.metadata(&self.own), "spec": testbed::load::spec(1)});
        let at = at("DatabaseCluster", QUIET, "evil");
        refused(
            "a new one",
            create(&self.client, at, new).await,
            "cannot create",
        );
        let shard = json!({
            "table": self.environment.table.uid, "lease": format!("databasecluster-shard-{}", self.other.shard),
            "epoch": self.environment.token(&self.other).epoch, "holder": self.other.holder,
            "bucket": testbed::shards::bucket(&self.other.uid), "uid": self.other.uid,
        });
        let status = json!({"status": {"phase": "Terminating", "shard": shard}});
        refused(
            "another's status",
            merge_status(&self.client, other, status).await,
            CLUSTERS,
        );
    }

    async fn children_of_others(&self) {
        let name = format!("{}-db", self.other.name);
        let own_name = format!("{}-db", self.own.name);
        for kind in ["StatefulSet", "PodDisruptionBudget"] {
            let at = at(kind, QUIET, &name);
            let child = get(&self.environment.admin, at).await.unwrap();
            refused(
                "a child of another",
                delete_exactly(&self.client, at, &child).await,
                HOLDER,
            );
            refused(
                "any child of another",
                delete(&self.client, at).await,
                "databasecluster-",
            );
        }
        for kind in ["StatefulSet", "Service", "ConfigMap", "PodDisruptionBudget"] {
            let theirs = at(kind, QUIET, &name);
            let change = json!({"metadata": {"labels": {"a": "b"}}});
            refused(
                "the token on it",
                merge(&self.client, theirs, change).await,
                HOLDER,
            );
            let own_token = merge(&self.client, theirs, annotation(self.token(&self.own))).await;
            refused("its own token", own_token, "databasecluster-fence-");
            let taken = json!({"metadata": self.metadata(&self.own)});
            let taken = merge(&self.client, theirs, taken).await;
            refused("as the child of its own cluster", taken, ORDER);
            // On a child of its own shard: an older epoch, and none.
            let own = at(kind, QUIET, &own_name);
            let old = Token {
                epoch: self.environment.token(&self.own).epoch - 1,
                ..self.environment.token(&self.own)
            };
            let old = merge(&self.client, own, annotation(old.to_string())).await;
            refused("an older epoch", old, "databasecluster-fence-");
            let none = merge(&self.client, own, annotation(Value::Null)).await;
            refused("no token", none, "databasecluster-fence-");
        }
    }

    async fn leases(&self) {
        let name = format!("databasecluster-shard-{}", self.other.shard);
        let theirs = at("Lease", SYSTEM, &name);
        let lease = get(&self.environment.admin, theirs).await.unwrap();
        let epoch = self.environment.token(&self.other).epoch;
        for (what, spec) in [
            ("an older epoch", json!({"leaseTransitions": epoch - 1})),
            (
                "vacant",
                json!({"holderIdentity": "", "leaseTransitions": epoch + 1}),
            ),
            (
                "a third one's",
                json!({"holderIdentity": "x", "leaseTransitions": epoch + 1}),
            ),
            (
                "its own under this epoch",
                json!({"holderIdentity": self.name}),
            ),
            (
                "a leap",
                json!({"holderIdentity": self.name, "leaseTransitions": epoch + (1 << 20) + 1}),
            ),
            ("too high", json!({"leaseTransitions": EPOCH_MAX + 1})),
        ] {
            refused(
                what,
                merge(&self.client, theirs, json!({"spec": spec})).await,
                LEASES,
            );
        }
        let incarnation = json!({"metadata": {"annotations": {"database.io/incarnation": "x"}}});
        refused(
            "another incarnation",
            merge(&self.client, theirs, incarnation).await,
            LEASES,
        );
        refused(
            "a deletion",
            delete_exactly(&self.client, theirs, &lease).await,
            LEASES,
        );
        let role = json!({"metadata": {"labels": {"database.io/role": "x"}}});
        refused(
            "no shard Lease",
            merge(&self.client, theirs, role).await,
            LEASES,
        );
        let foreign = at("Lease", SYSTEM, "kube-scheduler");
        let new = json!({"metadata": {}, "spec": {"holderIdentity": self.name}});
        refused(
            "another's Lease",
            create(&self.client, foreign, new.clone()).await,
            LEASES,
        );
        let system = at("Lease", "kube-system", "kube-scheduler");
        refused(
            "the system's Lease",
            create(&self.client, system, new).await,
            "cannot create",
        );
    }

    async fn entries(&self) {
        let table = at("ShardTable", SYSTEM, TABLE);
        let theirs = self.environment.table.entries[&self.other.shard].clone();
        let entry = |epoch: i64, holder: &str| {
            json!({"spec": {"entries": {&self.other.shard: {
                "epoch": epoch, "holder": holder, "incarnation": "x",
            }}}})
        };
        for (what, change) in [
            ("a third one's", entry(theirs.epoch + 1, "x")),
            ("vacant", entry(theirs.epoch + 1, "")),
        ] {
            refused(what, merge(&self.client, table, change).await, ENTRIES);
        }
        for (what, change) in [
            (
                "another incarnation",
                json!({"spec": {"entries": {&self.other.shard: {"incarnation": "x"}}}}),
            ),
            ("its own under this epoch", entry(theirs.epoch, &self.name)),
            ("an older epoch", entry(theirs.epoch - 1, &self.name)),
            ("a leap", entry(theirs.epoch + (1 << 20) + 1, &self.name)),
            ("too high", entry(EPOCH_MAX + 1, &self.name)),
            (
                "no entry",
                json!({"spec": {"entries": {&self.other.shard: null}}}),
            ),
        ] {
            refused(what, merge(&self.client, table, change).await, "is invalid");
        }
        for metadata in [
            json!({"finalizers": ["example.com/block"]}),
            json!({"labels": {"a": "b"}}),
            json!({"annotations": {"database.io/deletion": "allowed"}}),
            json!({"ownerReferences": owned_by(&self.own.uid, &self.own.name)}),
        ] {
            let what = metadata.to_string();
            let change = json!({"metadata": metadata});
            refused(&what, merge(&self.client, table, change).await, ENTRIES);
        }
        refused(
            "its deletion",
            delete(&self.client, table).await,
            "cannot delete",
        );
        let second = json!({"metadata": {}, "spec": {"shards": 1, "entries": {"000": {"epoch": 0, "holder": "", "incarnation": ""}}}});
        let another = at("ShardTable", SYSTEM, "another");
        refused(
            "a second table",
            create(&self.client, another, second.clone()).await,
            ENTRIES,
        );
        let elsewhere = at("ShardTable", QUIET, TABLE);
        refused(
            "one elsewhere",
            create(&self.client, elsewhere, second).await,
            "cannot create",
        );
    }

    async fn system_namespace(&self) {
        let mut metadata = self.metadata(&self.own);
        metadata["ownerReferences"] = owned_by(&self.own.uid, &self.own.name);
        for namespace in [SYSTEM, "kube-system", "kube-public", "kube-node-lease"] {
            let objects = [
                ("ConfigMap", json!({"metadata": metadata})),
                (
                    "Service",
                    json!({"metadata": metadata, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}}),
                ),
                ("Secret", json!({"metadata": metadata})),
            ];
            for (kind, object) in objects {
                let what = format!("{kind} in {namespace}");
                let at = at(kind, namespace, "evil");
                refused(&what, create(&self.client, at, object).await, NAMESPACES);
            }
        }
        let own_pod = at("Pod", SYSTEM, &self.name);
        let change = json!({"metadata": self.metadata(&self.own)});
        refused(
            "a replica's Pod",
            merge(&self.client, own_pod, change).await,
            "databasecluster-",
        );
    }

    async fn beyond_its_rights(&self) {
        let secret = format!("{}-app", self.own.name);
        let secret = at("Secret", QUIET, &secret);
        refused("a Secret", get(&self.client, secret).await, "cannot get");
        refused(
            "a Secret",
            merge(&self.client, secret, annotation("x")).await,
            "cannot patch",
        );
        refused(
            "a Secret",
            delete(&self.client, secret).await,
            "cannot delete",
        );
        for words in [
            "get secrets -A",
            "delete crd shardtables.database.io",
            "delete crd databaseclusters.database.io",
            "annotate crd shardtables.database.io database.io/deletion=allowed",
            "delete shardtable -n databasecluster-system --all",
            "delete validatingadmissionpolicybinding databasecluster-fence-order",
            "delete statefulsets -n victims --all",
            "delete --raw /api/v1/namespaces/kube-system/pods",
            "delete --raw /apis/apps/v1/namespaces/victims/statefulsets",
            "label namespace kube-system a=b",
            "cordon fake-0",
            "create clusterrolebinding evil --clusterrole=cluster-admin --user=evil",
            "create token databasecluster-operator -n databasecluster-system",
            "create serviceaccount evil -n victims",
            "get --raw /api/v1/namespaces/kube-system/pods/x/log",
            "get configmaps -A --as=system:admin",
        ] {
            let words: Vec<&str> = words.split_whitespace().collect();
            let control_plane = self.environment.control_plane;
            let answer = control_plane.run_kubectl_as(&self.kubeconfig, &words).await;
            let answer = answer.map_err(|error| error.to_string());
            let what = words.join(" ");
            let error = answer
                .clone()
                .expect_err(&format!("{what} was let through"));
            let forbidden = error.contains("orbidden") || error.contains("cannot");
            assert!(forbidden, "{what}: {error}");
        }
    }

    /// What the policies cannot refuse, because the operator does the same: SECURITY.md names it.
    async fn what_remains(&self) {
        // A policy cannot hash: that a child of another shard lies in a bucket of its own shard is the writer's word.
        let name = format!("{}-db", self.other.name);
        let mut moved = json!({"metadata": self.metadata(&self.own)});
        moved["metadata"]["ownerReferences"] = owned_by(&self.other.uid, &self.other.name);
        let token = Token {
            cluster: self.other.uid.clone(),
            ..self.environment.token(&self.own)
        };
        moved["metadata"]["annotations"][fencing::ANNOTATION] = json!(token.to_string());
        let answer = dry_merge(&self.client, at("ConfigMap", QUIET, &name), moved).await;
        let older = token.epoch < self.environment.token(&self.other).epoch;
        match older {
            true => refused("an older epoch", answer, ORDER),
            false => drop(let_through("a child with another bucket", answer)),
        }
        // It can take a shard, and end other members, as each replica must be able to.
        let theirs = format!("databasecluster-shard-{}", self.other.shard);
        let epoch = self.environment.token(&self.other).epoch + 1;
        let taken = json!({"spec": {"holderIdentity": self.name, "leaseTransitions": epoch}});
        let answer = dry_merge(&self.client, at("Lease", SYSTEM, &theirs), taken).await;
        let_through("taking a shard", answer);
        let member = format!("databasecluster-member-{}", self.other.holder);
        let vacant = json!({"spec": {"holderIdentity": ""}});
        let answer = dry_merge(&self.client, at("Lease", SYSTEM, &member), vacant).await;
        let_through("ending a member", answer);
    }
}

/// A merge patch by hand.
fn json_patch(target: &mut Value, change: &Value) {
    match (target, change) {
        (Value::Object(target), Value::Object(change)) => {
            for (key, value) in change {
                json_patch(target.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (target, change) => *target = change.clone(),
    }
}
