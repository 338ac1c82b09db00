//! The policies that check fencing tokens: against the shard table, and against the token on the object.

use super::Fence;
use super::policy::{Policy, ResourceRule, Scope};

/// The names of the Pods to which the caller's token is bound: one or none.
pub(super) const PODS: (&str, &str) = (
    "pods",
    "request.userInfo.?extra[?'authentication.kubernetes.io/pod-name'].orValue([])",
);

const ENTRY: (&str, &str) = (
    "entry",
    "variables.token.size() == 5 ? params.?spec.?entries[?variables.token[1]] : optional.none()",
);

const IS_STATUS: (&str, &str) = (
    "isStatus",
    "request.resource.resource == '$OWNERS' && has(request.subResource) && request.subResource == 'status'",
);

/// Children: the token is the table's, of the shard of the object's bucket.
pub(super) fn holder(fence: &Fence) -> Policy {
    Policy {
        name: "fence-holder",
        comment: "Present holder: the token is that of the shard table's entry for the shard of the object's bucket. Only \
            objects\nwith the bucket's label meet this policy: while the API server does not know the kind ShardTable, it \
            refuses\neverything that matches, whoever writes.",
        reads_table: true,
        scope: Scope::Labelled,
        rules: fence.rules(false),
        conditions: &[],
        variables: &[
            (
                "token",
                "(request.operation == 'DELETE' ? oldObject : object)
                .metadata.?annotations[?'$DOMAIN/fencing-token'].orValue('').split('/')",
            ),
            ENTRY,
            (
                "bucket",
                "(request.operation == 'DELETE' ? oldObject : object).metadata.?labels[?'$DOMAIN/bucket'].orValue('')",
            ),
            PODS,
        ],
        problem: "variables.token.size() != 5 || variables.token[0] != params.metadata.uid
            ? 'the fencing token ' + variables.token.join('/') + ' is not one of the present shard table, '
            + params.metadata.uid
            : !variables.entry.hasValue() || variables.token[3] == ''
            || variables.entry.value().holder != variables.token[3]
            || string(variables.entry.value().epoch) != variables.token[2]
            ? 'the fencing token ' + variables.token.join('/') + ' is not that of the present holder, '
            + params.metadata.uid + '/' + variables.token[1] + '/'
            + (variables.entry.hasValue()
            ? string(variables.entry.value().epoch) + '/' + variables.entry.value().holder : '0/')
            : !variables.bucket.matches('^(0|[1-9][0-9]{0,2})$') || int(variables.bucket) > 255
            || string(1000 + int(variables.bucket) * params.spec.shards / 256).substring(1) != variables.token[1]
            ? 'of ' + string(params.spec.shards) + ' shards, ' + variables.token[1] + ' is not the one of bucket '
            + variables.bucket
            : variables.pods.size() > 0 && !(variables.token[3] in variables.pods)
            ? 'the fencing token names ' + variables.token[3] + ', but the credentials are bound to the Pod '
            + variables.pods.map(p, string(p)).join(',')
            : ''",
        message: "the fencing token is not that of the present holder",
    }
}

/// The owner kind and its status: as for children, but that a status has fields instead of an annotation.
pub(super) fn owners(fence: &Fence) -> Policy {
    let resource = fence.owner.resource.as_str();
    let status = format!("{resource}/status");
    Policy {
        name: "fence-clusters",
        comment: "Present holder, for $OWNER_KIND objects and their status. They carry no label: the bucket in a status is \
            what the\nwriter says, because a policy cannot hash.",
        reads_table: true,
        scope: Scope::All,
        rules: vec![ResourceRule::new(&fence.owner.group, &[resource, &status])],
        conditions: &[],
        variables: &[
            IS_STATUS,
            (
                "token",
                "variables.isStatus
                ? [string(object.?status.?shard.?table.orValue('')),
                object.?status.?shard.?lease.orValue('').matches('^$LEASE[0-9]{3}$')
                ? object.status.shard.lease.substring($LEASE_DIGITS_AT) : '',
                string(object.?status.?shard.?epoch.orValue(0)), string(object.?status.?shard.?holder.orValue('')),
                string(object.?status.?shard.?uid.orValue(''))]
                : (request.operation == 'DELETE' ? oldObject : object)
                .metadata.?annotations[?'$DOMAIN/fencing-token'].orValue('').split('/')",
            ),
            ENTRY,
            ("bucket", "int(object.?status.?shard.?bucket.orValue(-1))"),
            PODS,
        ],
        problem: "variables.token.size() != 5 || variables.token[0] != params.metadata.uid
            ? 'the fencing token ' + variables.token.join('/') + ' is not one of the present shard table, '
            + params.metadata.uid
            : !variables.entry.hasValue() || variables.token[3] == ''
            || variables.entry.value().holder != variables.token[3]
            || string(variables.entry.value().epoch) != variables.token[2]
            ? 'the fencing token ' + variables.token.join('/') + ' is not that of the present holder, '
            + params.metadata.uid + '/' + variables.token[1] + '/'
            + (variables.entry.hasValue()
            ? string(variables.entry.value().epoch) + '/' + variables.entry.value().holder : '0/')
            : variables.isStatus && (variables.bucket < 0 || variables.bucket > 255
            || string(1000 + variables.bucket * params.spec.shards / 256).substring(1) != variables.token[1])
            ? 'of ' + string(params.spec.shards) + ' shards, ' + variables.token[1] + ' is not the one of bucket '
            + string(variables.bucket)
            : variables.pods.size() > 0 && !(variables.token[3] in variables.pods)
            ? 'the fencing token names ' + variables.token[3] + ', but the credentials are bound to the Pod '
            + variables.pods.map(p, string(p)).join(',')
            : ''",
        message: "the fencing token is not that of the present holder",
    }
}

const ORDER_VARIABLES: &[(&str, &str)] = &[
            ("subresource", "has(request.subResource) ? request.subResource : ''"),
            ("resource", "request.resource.resource"),
            (
                "isStatus",
                "variables.resource == '$OWNERS' && variables.subresource == 'status'",
            ),
            ("isChild", "!(variables.resource in ['$OWNERS'] + $BY_LABEL + $BY_TOKEN)"),
            ("target", "request.operation == 'DELETE' ? oldObject : object"),
            (
                "text",
                "variables.isStatus
                ? string(object.?status.?shard.?table.orValue('')) + '/'
                + (object.?status.?shard.?lease.orValue('').matches('^$LEASE[0-9]{3}$')
                ? object.status.shard.lease.substring($LEASE_DIGITS_AT) : '')
                + '/' + string(object.?status.?shard.?epoch.orValue(0))
                + '/' + string(object.?status.?shard.?holder.orValue(''))
                + '/' + string(object.?status.?shard.?uid.orValue(''))
                : variables.target.metadata.?annotations[?'$DOMAIN/fencing-token'].orValue('')",
            ),
            (
                "oldText",
                "request.operation != 'UPDATE' ? ''
                : variables.isStatus
                ? string(oldObject.?status.?shard.?table.orValue('')) + '/'
                + (oldObject.?status.?shard.?lease.orValue('').matches('^$LEASE[0-9]{3}$')
                ? oldObject.status.shard.lease.substring($LEASE_DIGITS_AT) : '')
                + '/' + string(oldObject.?status.?shard.?epoch.orValue(0))
                + '/' + string(oldObject.?status.?shard.?holder.orValue(''))
                + '/' + string(oldObject.?status.?shard.?uid.orValue(''))
                : oldObject.metadata.?annotations[?'$DOMAIN/fencing-token'].orValue('')",
            ),
            (
                "token",
                "# Table, shard, epoch, holder and uid, or an empty list: not a token.
                bytes(variables.text).size() <= $TOKEN_BYTES_MAX
                && variables.text.matches('^[^/]+/([01][0-9]{2}|2[0-4][0-9]|25[0-5])/[1-9][0-9]{0,9}/[^/]+/[^/]+$')
                && int(variables.text.split('/')[2]) <= $EPOCH_MAX
                ? variables.text.split('/') : []",
            ),
            (
                "oldToken",
                "bytes(variables.oldText).size() <= $TOKEN_BYTES_MAX
                && variables.oldText.matches('^[^/]+/([01][0-9]{2}|2[0-4][0-9]|25[0-5])/[1-9][0-9]{0,9}/[^/]+/[^/]+$')
                && int(variables.oldText.split('/')[2]) <= $EPOCH_MAX
                ? variables.oldText.split('/') : []",
            ),
            (
                "controllers",
                "variables.target.metadata.?ownerReferences.orValue([]).filter(r, r.?controller.orValue(false))",
            ),
            (
                "oldControllers",
                "request.operation != 'UPDATE' ? []
                : oldObject.metadata.?ownerReferences.orValue([]).filter(r, r.?controller.orValue(false))",
            ),
            (
                "cluster",
                "# The uid for which a token counts.
                variables.resource == '$OWNERS' ? variables.target.metadata.?uid.orValue('')
                : variables.resource in $BY_LABEL
                ? variables.target.metadata.?labels[?'$DOMAIN/cluster-uid'].orValue('')
                : variables.isChild ? (variables.controllers.size() == 1 ? variables.controllers[0].uid : '')
                : variables.token[4]",
            ),
            (
                "oldCluster",
                "variables.resource == '$OWNERS' ? oldObject.metadata.?uid.orValue('')
                : variables.resource in $BY_LABEL
                ? oldObject.metadata.?labels[?'$DOMAIN/cluster-uid'].orValue('')
                : variables.isChild ? (variables.oldControllers.size() == 1 ? variables.oldControllers[0].uid : '')
                : variables.oldToken[4]",
            ),
        ];

const ORDER_PROBLEM: &str = "variables.subresource != '' && !variables.isStatus
            ? 'the operator writes no other subresource than the status of a $OWNER_KIND'
            : variables.resource in $CREATE_ONLY && request.operation != 'CREATE'
            ? 'the operator creates ' + variables.resource + ' and never changes or deletes them'
            : request.operation == 'DELETE' && !(has(request.name) && request.name != '')
            ? 'the operator never deletes collections'
            : request.operation == 'DELETE' && (request.?options.?preconditions.?uid.orValue('') == ''
            || request.?options.?preconditions.?resourceVersion.orValue('') == '')
            ? 'a deletion must name uid and resourceVersion'
            : variables.token.size() == 0
            ? 'no fencing token <table uid>/<shard>/<epoch>/<holder>/<cluster uid>, or a malformed one: '
            + variables.text
            : variables.resource == '$OWNERS'
            ? (variables.isStatus && (int(object.?status.?shard.?bucket.orValue(-1)) < 0
            || int(object.?status.?shard.?bucket.orValue(-1)) > 255)
            ? 'status.shard.bucket must be a number from 0 to 255'
            : variables.token[4] != variables.cluster
            ? 'the write is for another $OWNER_KIND of this name, with the uid ' + variables.token[4]
            : variables.oldToken.size() == 5 && variables.oldToken[4] == variables.cluster
            && variables.oldToken[0] == variables.token[0]
            && int(variables.oldToken[2]) > int(variables.token[2])
            ? 'epoch ' + variables.token[2] + ' is older than the one on the object, ' + variables.oldToken[2]
            : '')
            : !variables.target.metadata.?labels[?'$DOMAIN/bucket'].orValue('').matches('^(0|[1-9][0-9]{0,2})$')
            || int(variables.target.metadata.labels['$DOMAIN/bucket']) > 255
            ? 'the label $DOMAIN/bucket must be a number from 0 to 255'
            : variables.isChild && !(variables.controllers.size() == 1
            && variables.controllers[0].kind == '$OWNER_KIND'
            && variables.controllers[0].apiVersion.startsWith('$OWNER_GROUP/'))
            ? 'a child must be controlled by one $OWNER_KIND'
            : variables.isChild && variables.oldControllers.size() > 0
            && variables.oldControllers[0].uid != variables.controllers[0].uid
            ? 'the controller of an object never changes: from ' + variables.oldControllers[0].kind + ' '
            + variables.oldControllers[0].uid + ' to ' + variables.controllers[0].uid
            : variables.isChild && request.operation == 'UPDATE' && variables.oldControllers.size() == 0
            && !('$DOMAIN/bucket' in oldObject.metadata.?labels.orValue({}))
            ? 'the object was not created by the operator, which takes over none but its own'
            : variables.token[4] != variables.cluster
            ? 'the fencing token is for the $OWNER_KIND with the uid ' + variables.token[4]
            + ', but the object belongs to ' + (variables.cluster == '' ? 'none' : variables.cluster)
            : variables.oldToken.size() == 5 && variables.oldToken[4] == variables.token[4]
            && variables.oldToken[4] == variables.oldCluster && variables.oldToken[0] == variables.token[0]
            && int(variables.oldToken[2]) > int(variables.token[2])
            ? 'epoch ' + variables.token[2] + ' is older than the one on the object, ' + variables.oldToken[2]
            : ''";

/// What object and request show by themselves.
pub(super) fn order(fence: &Fence) -> Policy {
    let resource = fence.owner.resource.as_str();
    let subresources = format!("{resource}/*");
    let mut rules = vec![ResourceRule::new(
        &fence.owner.group,
        &[resource, &subresources],
    )];
    rules.extend(fence.rules(true));
    Policy {
        name: "fence-order",
        comment: "Never backwards, for the right object, deletions with preconditions: what object and request show by \
            themselves.\nIt has no parameter, so it holds whatever the API server's caches lag and while there is no \
            shard table.\n\nA token counts only for its own object: its last part is the uid of the $OWNER_KIND itself, of \
            a child's controller,\nor on a claim's label. Any other token is as none. Annotation and status.shard are two \
            registers.",
        reads_table: false,
        scope: Scope::All,
        rules,
        conditions: &[],
        variables: ORDER_VARIABLES,
        problem: ORDER_PROBLEM,
        message: "the write does not carry a fencing token for its object",
    }
}
