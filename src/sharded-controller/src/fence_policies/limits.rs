//! Upper bounds on what the operator's credentials allow, for every user of them.

use super::Fence;
use super::policy::{NO_PROBLEM, PROBLEM, Policy, REFUSED, ResourceRule, Scope};
use super::tokens::TARGET;

/// StatefulSets run Pods without privileges.
pub(super) fn stateful_sets(_: &Fence) -> Policy {
    Policy {
        name: "limits-statefulsets",
        comment: "Upper bounds on what the operator's credentials allow, also if they are stolen: no Pods with privileges, with \
            access to\ntheir nodes, with a ServiceAccount, or with another Secret than their cluster's; of others the keys of a \
            certificate\nonly. An existing template that does not change is not checked.",
        reads_table: false,
        scope: Scope::All,
        rules: vec![ResourceRule::of("apps", &["statefulsets"], &["CREATE", "UPDATE"])],
        variables: &[
            ("pod", "object.spec.template.spec"),
            (
                "secret",
                "# The Secret of the cluster whose StatefulSet this is: the one of `orders-db` is `orders-app`.
                object.metadata.?name.orValue('').endsWith('-db')
                ? object.metadata.name.substring(0, object.metadata.name.size() - 3) + '-app' : ''",
            ),
            ("containers", "variables.pod.containers + variables.pod.?initContainers.orValue([])"),
            (
                "isControlled",
                "object.metadata.?ownerReferences.orValue([]).exists(r, r.?controller.orValue(false)
                && r.kind == '$OWNER_KIND' && $OF_OWNERS_GROUP)",
            ),
            (
                "problem",
                "!variables.isControlled ? 'a StatefulSet must be controlled by a $OWNER_KIND'
                : request.operation == 'UPDATE' && object.spec.template == oldObject.spec.template ? ''
                : variables.pod.?serviceAccountName.orValue('') != '' || variables.pod.?serviceAccount.orValue('') != ''
                || variables.pod.?automountServiceAccountToken.orValue(true)
                ? 'Pods of a StatefulSet must have no serviceAccountName and automountServiceAccountToken: false'
                : variables.pod.?hostNetwork.orValue(false) || variables.pod.?hostPID.orValue(false)
                || variables.pod.?hostIPC.orValue(false) || variables.pod.?nodeName.orValue('') != ''
                ? 'Pods of a StatefulSet must not have hostNetwork, hostPID, hostIPC or nodeName'
                : variables.pod.?resourceClaims.orValue([]).size() > 0
                || !variables.pod.?volumes.orValue([]).all(v, has(v.emptyDir) || has(v.configMap)
                || (has(v.secret) && v.secret.?secretName.orValue('') == variables.secret)
                || (has(v.projected) && v.projected.?sources.orValue([]).all(s, has(s.secret)
                && (s.secret.?name.orValue('') == variables.secret
                || (v.name == 'tls' && s.secret.?items.orValue([]).size() > 0
                && s.secret.items.all(i, i.key in ['tls.crt', 'tls.key', 'ca.crt']))))))
                ? 'Pods of a StatefulSet must have no volumes but emptyDir, configMap, the Secret ' + variables.secret
                + ', and in the volume tls the keys tls.crt, tls.key and ca.crt of another'
                : !variables.containers.all(c, !c.?securityContext.?privileged.orValue(false)
                && !c.?securityContext.?allowPrivilegeEscalation.orValue(true)
                && c.?securityContext.?capabilities.?add.orValue([]).size() == 0
                && c.?securityContext.?procMount.orValue('Default') == 'Default'
                && !c.?securityContext.?windowsOptions.hasValue()
                && c.?ports.orValue([]).all(p, p.?hostPort.orValue(0) == 0))
                || variables.pod.?securityContext.?windowsOptions.hasValue()
                || variables.pod.?securityContext.?sysctls.orValue([]).size() > 0
                ? 'containers of a StatefulSet must have allowPrivilegeEscalation: false, no privileges, no capabilities '
                + 'and no hostPort'
                : !variables.containers.all(c, c.?envFrom.orValue([]).all(e, !has(e.secretRef)
                || e.secretRef.?name.orValue('') == variables.secret)
                && c.?env.orValue([]).all(e, !has(e.valueFrom) || !has(e.valueFrom.secretKeyRef)
                || e.valueFrom.secretKeyRef.?name.orValue('') == variables.secret))
                ? 'containers of a StatefulSet must read no Secret but ' + variables.secret
                : ''",
            ),
        ],
        condition: NO_PROBLEM,
        message: REFUSED,
        message_expression: PROBLEM,
    }
}

/// Services draw no traffic that is not for their Pods.
pub(super) fn services(_: &Fence) -> Policy {
    Policy {
        name: "limits-services",
        comment: "No Service that receives traffic of other Services, or traffic from outside the cluster for other Pods than \
            those that carry\nthe operator's name in `app.kubernetes.io/managed-by`.",
        reads_table: false,
        scope: Scope::All,
        rules: vec![ResourceRule::of("", &["services"], &["CREATE", "UPDATE"])],
        variables: &[],
        condition: "((object.spec.?type.orValue('ClusterIP') == 'ClusterIP'
                || (object.spec.type in ['NodePort', 'LoadBalancer']
                && object.spec.?selector[?'app.kubernetes.io/managed-by'].orValue('') == '$APP')
                || (request.operation == 'UPDATE' && oldObject.spec.?type.orValue('ClusterIP') == object.spec.type))
                && (object.spec.?externalIPs.orValue([]).size() == 0
                || (request.operation == 'UPDATE'
                && oldObject.spec.?externalIPs.orValue([]) == object.spec.externalIPs)))",
        message: "the operator gives a Service no type but ClusterIP, and no externalIPs; NodePort and LoadBalancer only if its \
            selector has app.kubernetes.io/managed-by: $APP",
        message_expression: "",
    }
}

/// Secrets contain nothing but what the operator writes into them.
pub(super) fn secrets(_: &Fence) -> Policy {
    Policy {
        name: "limits-secrets",
        comment: "No Secret to which Kubernetes adds credentials.",
        reads_table: false,
        scope: Scope::All,
        rules: vec![ResourceRule::of("", &["secrets"], &["CREATE"])],
        variables: &[],
        condition: "object.?type.orValue('Opaque') == 'Opaque'",
        message: "the operator creates no Secret of a type but Opaque",
        message_expression: "",
    }
}

/// Pods: metadata and deletion only.
pub(super) fn pods(_: &Fence) -> Policy {
    Policy {
        name: "limits-pods",
        comment: "The operator never creates Pods and never changes what they run.",
        reads_table: false,
        scope: Scope::All,
        rules: vec![ResourceRule::of("", &["pods", "pods/*"], &["CREATE", "UPDATE"])],
        variables: &[],
        condition: "!(request.operation != 'UPDATE' || (has(request.subResource) && request.subResource != '')
                || object.spec != oldObject.spec
                || object.metadata.?finalizers.orValue([]) != oldObject.metadata.?finalizers.orValue([])
                || object.metadata.?ownerReferences.orValue([]) != oldObject.metadata.?ownerReferences.orValue([])
                || !object.metadata.?labels.orValue({}).all(k, k == '$DOMAIN/bucket'
                || oldObject.metadata.?labels[?k].orValue('') == object.metadata.labels[k])
                || !oldObject.metadata.?labels.orValue({}).all(k, k == '$DOMAIN/bucket'
                || k in object.metadata.?labels.orValue({})))",
        message: "the operator deletes Pods, and changes nothing of them but its annotations and the bucket",
        message_expression: "",
    }
}

/// The owner kind: metadata of the operator's own, never the spec.
pub(super) fn owners(fence: &Fence) -> Policy {
    Policy {
        name: "limits-clusters",
        comment: "The spec belongs to the user.",
        reads_table: false,
        scope: Scope::All,
        rules: vec![ResourceRule::new(&fence.owner.group, &["$OWNERS"])],
        variables: &[],
        condition: "!(request.operation != 'UPDATE' || object.?spec != oldObject.?spec
                || object.metadata.?labels.orValue({}) != oldObject.metadata.?labels.orValue({})
                || object.metadata.?ownerReferences.orValue([]) != oldObject.metadata.?ownerReferences.orValue([])
                || object.metadata.?finalizers.orValue([]).filter(f, f != '$DOMAIN/operator')
                != oldObject.metadata.?finalizers.orValue([]).filter(f, f != '$DOMAIN/operator')
                || !object.metadata.?annotations.orValue({}).all(k, k == '$DOMAIN/fencing-token'
                || oldObject.metadata.?annotations[?k].optMap(v, v == object.metadata.annotations[k]).orValue(false))
                || !oldObject.metadata.?annotations.orValue({}).all(k, k == '$DOMAIN/fencing-token'
                || k in object.metadata.?annotations.orValue({})))",
        message: "the operator changes nothing of a $OWNER_KIND but its own finalizer, its fencing token and the status",
        message_expression: "",
    }
}

/// Namespaces in which the operator has nothing to do.
pub(super) fn namespaces(fence: &Fence) -> Policy {
    let mut rules = vec![ResourceRule::new(
        &fence.owner.group,
        &["$OWNERS", "$OWNERS/*"],
    )];
    rules.extend(fence.rules(true));
    rules.push(ResourceRule::new("events.k8s.io", &["events"]));
    Policy {
        name: "limits-namespaces",
        comment: "System namespaces: the operator writes nothing there, except the status of a $OWNER_KIND and its events. In \
            its own\nnamespace it also has its Leases and the shard table.",
        reads_table: false,
        scope: Scope::Namespaces(&["kube-system", "kube-public", "kube-node-lease", "$NAMESPACE"]),
        rules,
        variables: &[TARGET, (
            "problem",
            "# By dry runs each replica checks that the other policies refuse it.
            request.?dryRun.orValue(false) ? ''
            : request.resource.resource == 'events'
            ? (request.namespace == '$NAMESPACE' || variables.target.?regarding.?kind.orValue('') == '$OWNER_KIND' ? ''
            : 'the operator reports on no object but a $OWNER_KIND')
            : request.resource.resource == '$OWNERS' && has(request.subResource) && request.subResource == 'status'
            ? ''
            : 'the operator keeps no objects in the namespace ' + request.namespace
            + ': create a $OWNER_KIND in a namespace of your own'",
        )],
        condition: NO_PROBLEM,
        message: REFUSED,
        message_expression: PROBLEM,
    }
}
