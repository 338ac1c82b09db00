//! The policies for what ownership rests on: the shard Leases, and the shard table.

use super::Fence;
use super::policy::{NO_PROBLEM, PROBLEM, Policy, REFUSED, ResourceRule, Scope};
use super::tokens::{PODS, TARGET};

/// Variables of the rule of a shard Lease; `problem` is the rule.
const LEASE_VARIABLES: &[(&str, &str)] = &[
            ("isDelete", "request.operation == 'DELETE'"),
            ("isUpdate", "request.operation == 'UPDATE'"),
            TARGET,
            ("name", "variables.target.metadata.?name.orValue('')"),
            (
                "index",
                "variables.name.matches('^$LEASE[0-9]{3}$') ? int(variables.name.substring($LEASE_DIGITS_AT)) : 256",
            ),
            (
                "shards",
                "variables.target.metadata.?annotations[?'$DOMAIN/shards'].orValue('')
                .matches('^(1|2|4|8|16|32|64|128|256)$')
                ? int(variables.target.metadata.annotations['$DOMAIN/shards']) : 0",
            ),
            ("holder", "variables.target.?spec.?holderIdentity.orValue('')"),
            ("epoch", "variables.target.?spec.?leaseTransitions.orValue(0)"),
            ("oldHolder", "variables.isUpdate ? oldObject.?spec.?holderIdentity.orValue('') : ''"),
            ("oldEpoch", "variables.isUpdate ? oldObject.?spec.?leaseTransitions.orValue(0) : 0"),
            (
                "changesHands",
                "variables.isUpdate && (variables.holder != variables.oldHolder
                || object.metadata.?annotations[?'$DOMAIN/incarnation'].orValue('')
                != oldObject.metadata.?annotations[?'$DOMAIN/incarnation'].orValue('')
                || object.metadata.?annotations[?'$DOMAIN/shards'].orValue('')
                != oldObject.metadata.?annotations[?'$DOMAIN/shards'].orValue(''))",
            ),
            PODS,
            ("problem", "!variables.name.startsWith('$LEASE')
            ? (variables.name.startsWith('$PREFIX-') ? ''
            : 'the operator writes no Lease but its own, whose names start with $PREFIX-')
            : variables.isDelete
            ? (has(request.name) && request.name != '' && oldObject.?spec.?holderIdentity.orValue('') == ''
            && request.?options.?preconditions.?uid.orValue('') != ''
            && request.?options.?preconditions.?resourceVersion.orValue('') != ''
            ? '' : 'a shard Lease is deleted only when vacant, by uid and resourceVersion')
            : object.metadata.?labels[?'app.kubernetes.io/name'].orValue('') != '$APP'
            || object.metadata.?labels[?'$DOMAIN/role'].orValue('') != 'shard'
            ? 'a shard Lease keeps its labels'
            : !(variables.index < variables.shards && object.metadata.?annotations[?'$DOMAIN/buckets'].orValue('')
            == string(variables.index * 256 / variables.shards) + '-'
            + string((variables.index + 1) * 256 / variables.shards - 1))
            ? 'name, number of shards and range of buckets of a shard Lease must fit together'
            : !(variables.epoch > 0 && variables.epoch <= $EPOCH_MAX && has(object.spec.holderIdentity)
            && !has(object.spec.leaseDurationSeconds))
            ? 'a shard Lease has a holder (or an empty one), an epoch from 1 to $EPOCH_MAX and no duration'
            : variables.epoch < variables.oldEpoch
            ? 'the epoch of a shard never falls: ' + string(variables.oldEpoch) + ' to ' + string(variables.epoch)
            : variables.isUpdate && variables.epoch - variables.oldEpoch > $EPOCH_STEP_MAX
            ? 'one write must not raise the epoch of a shard by more than $EPOCH_STEP_MAX'
            : variables.changesHands && variables.epoch <= variables.oldEpoch
            ? 'a change of holder, incarnation or number of shards raises the epoch above '
            + string(variables.oldEpoch)
            : variables.pods.size() > 0 && variables.holder != variables.oldHolder
            && !(variables.holder in variables.pods) && !(variables.oldHolder in variables.pods)
            ? 'the credentials are bound to the Pod ' + variables.pods.map(p, string(p)).join(',')
            + ', which neither takes nor hands over this shard'
            : ''"),
];

/// The shard Leases.
pub(super) fn leases(_: &Fence) -> Policy {
    Policy {
        name: "fence-leases",
        comment: "The shard Leases: the epoch never falls, one epoch has one holder, and nobody hands over what another \
            replica holds.",
        reads_table: false,
        scope: Scope::Namespaces(&["$NAMESPACE"]),
        rules: vec![ResourceRule::new("coordination.k8s.io", &["leases"])],
        variables: LEASE_VARIABLES,
        condition: NO_PROBLEM,
        message: REFUSED,
        message_expression: PROBLEM,
    }
}

/// The shard table. That epochs only rise is a schema rule of its kind, which applies to every
/// user.
pub(super) fn table(_: &Fence) -> Policy {
    Policy {
        name: "fence-table",
        comment: "The shard table: a replica writes only entries that name itself. That epochs only rise is a schema rule of \
            the kind,\nwhich applies to every user. Creation and a change of the number of shards, where every entry is \
            vacant, are open to\nany replica.",
        reads_table: false,
        scope: Scope::All,
        rules: vec![ResourceRule::new("$DOMAIN", &["shardtables", "shardtables/*"])],
        variables: &[
            PODS,
            ("problem", "request.operation == 'DELETE'
            ? 'the operator never deletes the shard table'
            : request.namespace != '$NAMESPACE' || object.metadata.?name.orValue('') != '$TABLE'
            || (has(request.subResource) && request.subResource != '')
            ? 'the operator writes no ShardTable but $NAMESPACE/$TABLE'
            : object.metadata.?finalizers.orValue([]).size() > 0
            || object.metadata.?ownerReferences.orValue([]).size() > 0
            ? 'the shard table has neither finalizers nor owners'
            : request.operation == 'UPDATE'
            && (object.metadata.?labels.orValue({}) != oldObject.metadata.?labels.orValue({})
            || object.metadata.?annotations.orValue({}) != oldObject.metadata.?annotations.orValue({}))
            ? 'the operator does not change labels or annotations of the shard table'
            : request.operation == 'CREATE' && '$DOMAIN/deletion' in object.metadata.?annotations.orValue({})
            ? 'the operator does not allow the deletion of the shard table'
            : request.operation == 'UPDATE' && variables.pods.size() > 0
            && object.spec.shards == oldObject.spec.shards
            && !object.spec.entries.all(k, object.spec.entries[k].holder in variables.pods
            || (k in oldObject.spec.entries && object.spec.entries[k] == oldObject.spec.entries[k]))
            ? 'the credentials are bound to the Pod ' + variables.pods.map(p, string(p)).join(',')
            + ', which writes only entries that name it as the holder'
            : ''"),
        ],
        condition: NO_PROBLEM,
        message: REFUSED,
        message_expression: PROBLEM,
    }
}
