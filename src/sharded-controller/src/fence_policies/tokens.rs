//! The policies that check fencing tokens: against the shard table, and against the token on the object.

use super::Fence;
use super::policy::{Policy, ResourceRule, Scope};

/// The object that a write is about.
pub(super) const TARGET: (&str, &str) = (
    "target",
    "request.operation == 'DELETE' ? oldObject : object",
);

/// The names of the Pods to which the caller's credentials are bound: one or none.
pub(super) const PODS: (&str, &str) = (
    "pods",
    "request.userInfo.?extra[?'authentication.kubernetes.io/pod-name'].orValue([])",
);

/// The token in the fields of a status, as text.
macro_rules! status_token {
    ($object:literal) => {
        concat!(
            "string(",
            $object,
            ".?status.?shard.?table.orValue('')) + '/'\n",
            "+ (",
            $object,
            ".?status.?shard.?lease.orValue('').matches('^$LEASE[0-9]{3}$')\n",
            "? ",
            $object,
            ".status.shard.lease.substring($LEASE_DIGITS_AT) : '')\n",
            "+ '/' + string(",
            $object,
            ".?status.?shard.?epoch.orValue(0))\n",
            "+ '/' + string(",
            $object,
            ".?status.?shard.?holder.orValue(''))\n",
            "+ '/' + string(",
            $object,
            ".?status.?shard.?uid.orValue(''))\n",
        )
    };
}

const IS_STATUS: &str = "request.resource.resource == '$OWNERS' && has(request.subResource) && request.subResource == 'status'";

/// The part of a token that the entry of its shard decides.
macro_rules! granted {
    ($token:literal) => {
        concat!(
            "variables.shard in params.spec.entries && params.spec.entries[variables.shard].holder != ''\n&& ",
            $token,
            ".startsWith(
            params.metadata.uid + '/' + variables.shard + '/'
            + string(params.spec.entries[variables.shard].epoch) + '/'
            + params.spec.entries[variables.shard].holder + '/')"
        )
    };
}

const GRANTED: &str = "variables.granted
    && (variables.pods.size() == 0 || params.spec.entries[variables.shard].holder in variables.pods)";
const NOT_THE_HOLDER: &str = "the fencing token is not that of the present holder, in the present shard table, of the shard of the object's bucket";
const OTHER_POD: &str = "variables.granted
    ? 'the fencing token names another replica than the Pod to which the credentials are bound' : ''";

/// Children: the token is the table's, of the shard of the object's bucket.
pub(super) fn holder(fence: &Fence) -> Policy {
    Policy {
        name: "fence-holder",
        comment: "Current holder: the token is that of the shard table's entry for the shard of the object's bucket. This \
            policy applies\nonly to objects with the bucket's label: while the API server does not know the kind ShardTable, \
            it refuses every write\nthat matches, from every user.",
        reads_table: true,
        scope: Scope::Labelled,
        rules: fence.rules(false),
        variables: &[
            TARGET,
            (
                "shard",
                "variables.target.metadata.?labels[?'$DOMAIN/bucket'].orValue('')
                .matches('^([0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])$')
                ? string(1000 + int(variables.target.metadata.labels['$DOMAIN/bucket']) * params.spec.shards / 256)
                .substring(1) : ''",
            ),
            PODS,
            (
                "granted",
                granted!("variables.target.metadata.?annotations[?'$DOMAIN/fencing-token'].orValue('')"),
            ),
        ],
        condition: GRANTED,
        message: NOT_THE_HOLDER,
        message_expression: OTHER_POD,
    }
}

/// The owner kind and its status: as for children, except that a status has fields instead of an
/// annotation.
pub(super) fn owners(fence: &Fence) -> Policy {
    let resource = fence.owner.resource.as_str();
    let status = format!("{resource}/status");
    Policy {
        name: "fence-clusters",
        comment: "Current holder, for $OWNER_KIND objects and their status. They carry no label: the bucket in a status is \
            taken from the\nwriter, because a policy cannot compute the hash.",
        reads_table: true,
        scope: Scope::All,
        rules: vec![ResourceRule::new(&fence.owner.group, &[resource, &status])],
        variables: &[
            ("isStatus", IS_STATUS),
            (
                "token",
                concat!(
                    "variables.isStatus\n? ",
                    status_token!("object"),
                    ": (request.operation == 'DELETE' ? oldObject : object)
                    .metadata.?annotations[?'$DOMAIN/fencing-token'].orValue('')",
                ),
            ),
            (
                "shard",
                "# By the bucket in a status; an annotation stands by itself.
                !variables.isStatus ? (variables.token + '//').split('/')[1]
                : int(object.?status.?shard.?bucket.orValue(-1)) >= 0
                && int(object.?status.?shard.?bucket.orValue(-1)) <= 255
                ? string(1000 + int(object.status.shard.bucket) * params.spec.shards / 256).substring(1) : ''",
            ),
            PODS,
            ("granted", granted!("variables.token")),
        ],
        condition: GRANTED,
        message: NOT_THE_HOLDER,
        message_expression: OTHER_POD,
    }
}

/// The parts of a text that may be no token.
const TOKEN: (&str, &str) = ("token", "(variables.text + '////').split('/')");
const OLD_TOKEN: (&str, &str) = ("oldToken", "(variables.oldText + '////').split('/')");

const ORDER: &str = "a write of the operator must carry a token <table uid>/<shard>/<epoch>/<holder>/<cluster uid> for the $OWNER_KIND to which the object belongs, and the number of its bucket; a child has one controller, which never changes, and none but an orphan of the operator's is taken over; a deletion names one object, its uid and its resourceVersion; some kinds are only created; and no subresource is written but the status of a $OWNER_KIND";

/// A deletion of a collection arrives object by object, and without a name.
macro_rules! request_rules {
    () => {
        "(request.operation != 'DELETE' || (has(request.name) && request.name != ''
        && request.?options.?preconditions.?uid.orValue('') != ''
        && request.?options.?preconditions.?resourceVersion.orValue('') != ''))"
    };
}

macro_rules! is_token {
    ($text:literal) => {
        concat!(
            $text,
            ".matches('^[^/]+/([01][0-9]{2}|2[0-4][0-9]|25[0-5])/[1-9][0-9]{0,9}/[^/]+/[^/]+$')\n",
            "&& bytes(",
            $text,
            ").size() <= $TOKEN_BYTES_MAX && int(",
            $text,
            ".split('/')[2]) <= $EPOCH_MAX",
        )
    };
}

/// The old text is no token, or of another table, or for another cluster, or not newer.
macro_rules! not_backwards {
    () => {
        concat!(
            "variables.oldText == variables.text\n|| !(",
            is_token!("variables.oldText"),
            ")\n|| variables.oldToken[4] != variables.token[4] || variables.oldToken[0] != variables.token[0]
            || int(variables.oldToken[2]) <= int(variables.token[2])",
        )
    };
}

/// What a program of ours reads: only where it is so.
const BACKWARDS: &str = "variables.oldText == variables.text || variables.token[0] != variables.oldToken[0]
    || variables.token[4] != variables.oldToken[4] || !variables.token[2].matches('^[0-9]{1,10}$') || !variables.oldToken[2].matches('^[0-9]{1,10}$')
    || int(variables.token[2]) >= int(variables.oldToken[2]) ? ''
    : 'epoch ' + variables.token[2] + ' is older than the one on the object, ' + variables.oldToken[2]";

/// Children, claims and Pods: what object and request show by themselves.
pub(super) fn order(fence: &Fence) -> Policy {
    Policy {
        name: "fence-order",
        comment: "Order of tokens, right object, deletions with preconditions: rules that need only the object and the request.\n\
            It has no parameter, so it holds however far the API server's caches lag, and while there is no shard table.\n\n\
            A token counts only for its own object: its last part is the uid of a child's controller, or the one in a \
            claim's label.\nAny other token is ignored.",
        reads_table: false,
        scope: Scope::All,
        rules: fence.rules(true),
        variables: &[
            TARGET,
            ("text", "variables.target.metadata.?annotations[?'$DOMAIN/fencing-token'].orValue('')"),
            (
                "oldText",
                "request.operation != 'UPDATE' ? ''
                : oldObject.metadata.?annotations[?'$DOMAIN/fencing-token'].orValue('')",
            ),
            TOKEN,
            OLD_TOKEN,
            (
                "cluster",
                "# The uid for which a token counts; of a child, that of its only controller.
                request.resource.resource in $BY_LABEL
                ? variables.target.metadata.?labels[?'$DOMAIN/cluster-uid'].orValue('')
                : request.resource.resource in $BY_TOKEN ? variables.token[4]
                : variables.target.metadata.?ownerReferences.orValue([])
                .filter(r, r.?controller.orValue(false) && r.kind == '$OWNER_KIND'
                && $OF_OWNERS_GROUP).map(r, r.uid).join(' ')",
            ),
        ],
        condition: concat!(
                "(!has(request.subResource) || request.subResource == '')
                && (request.operation == 'CREATE' || !(request.resource.resource in $CREATE_ONLY))\n&& ",
                request_rules!(),
                "\n&& ",
                is_token!("variables.text"),
                "\n&& variables.target.metadata.?labels[?'$DOMAIN/bucket'].orValue('')
                .matches('^([0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])$')
                && variables.token[4] == variables.cluster
                # The controller of a child never changes to another one.
                && (request.operation != 'UPDATE'
                || ((request.resource.resource in $BY_LABEL + $BY_TOKEN
                || (oldObject.metadata.?ownerReferences.orValue([])
                .all(r, !r.?controller.orValue(false) || r.uid == variables.cluster)
                # What has no controller must be an orphan of the operator's.
                && ('$DOMAIN/bucket' in oldObject.metadata.?labels.orValue({})
                || oldObject.metadata.?ownerReferences.orValue([]).exists(r, r.?controller.orValue(false)))))
                # Never backwards, if the old token counts: also for the old object.
                && (",
                not_backwards!(),
                "\n|| (request.resource.resource in $BY_LABEL
                && oldObject.metadata.?labels[?'$DOMAIN/cluster-uid'].orValue('') != variables.cluster)
                || (!(request.resource.resource in $BY_LABEL + $BY_TOKEN)
                && !oldObject.metadata.?ownerReferences.orValue([])
                .exists(r, r.?controller.orValue(false) && r.uid == variables.cluster)))))",
        ),
        message: ORDER,
        message_expression: BACKWARDS,
    }
}

/// The owner kind: annotation and `status.shard` are two registers.
pub(super) fn owners_order(fence: &Fence) -> Policy {
    let resource = fence.owner.resource.as_str();
    let subresources = format!("{resource}/*");
    Policy {
        name: "fence-order-clusters",
        comment: "The same for $OWNER_KIND objects, for which a token of their own uid counts. Annotation and status.shard are \
            two registers:\na status is compared with the status only.",
        reads_table: false,
        scope: Scope::All,
        rules: vec![ResourceRule::new(
            &fence.owner.group,
            &[resource, &subresources],
        )],
        variables: &[
            ("isStatus", IS_STATUS),
            (
                "text",
                concat!(
                    "variables.isStatus\n? ",
                    status_token!("object"),
                    ": (request.operation == 'DELETE' ? oldObject : object)
                    .metadata.?annotations[?'$DOMAIN/fencing-token'].orValue('')",
                ),
            ),
            (
                "oldText",
                concat!(
                    "request.operation != 'UPDATE' ? '' : variables.isStatus\n? ",
                    status_token!("oldObject"),
                    ": oldObject.metadata.?annotations[?'$DOMAIN/fencing-token'].orValue('')",
                ),
            ),
            TOKEN,
            OLD_TOKEN,
        ],
        condition: concat!(
                "(!has(request.subResource) || request.subResource == '' || variables.isStatus)\n&& ",
                request_rules!(),
                "\n&& ",
                is_token!("variables.text"),
                "\n&& (!variables.isStatus || (int(object.?status.?shard.?bucket.orValue(-1)) >= 0
                && int(object.?status.?shard.?bucket.orValue(-1)) <= 255))
                && variables.token[4] == (request.operation == 'DELETE' ? oldObject : object).metadata.?uid.orValue('')
                && (request.operation != 'UPDATE' || ",
                not_backwards!(),
                ")",
        ),
        message: ORDER,
        message_expression: BACKWARDS,
    }
}
