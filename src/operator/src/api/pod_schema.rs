//! Schemas of fields that are passed on to Pods: the shapes of Kubernetes, with bounds, and with descriptions of one
//! line. The whole texts of Kubernetes would make the CRD several times as large.

use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

/// Values of labels, by name.
pub(super) fn label_values(_: &mut SchemaGenerator) -> Schema {
    to_schema(labels())
}

/// Values of annotations, by name.
pub(super) fn annotation_values(_: &mut SchemaGenerator) -> Schema {
    to_schema(json!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {"type": "string", "maxLength": 4096},
    }))
}

/// Numbers of groups.
pub(super) fn groups(_: &mut SchemaGenerator) -> Schema {
    to_schema(json!({
        "type": "array",
        "maxItems": 16,
        "items": {"type": "integer", "format": "int64", "minimum": 1, "maximum": 2_147_483_647},
    }))
}

/// `spec.affinity` of a Pod.
pub(super) fn affinity(_: &mut SchemaGenerator) -> Schema {
    let preference = object(
        &["weight", "preference"],
        [
            ("weight", weight()),
            (
                "preference",
                describe(node_term(), "Node selector term that is preferred."),
            ),
        ],
    );
    let node = object(
        &[],
        [
            (
                "requiredDuringSchedulingIgnoredDuringExecution",
                describe(
                    object(
                        &["nodeSelectorTerms"],
                        [(
                            "nodeSelectorTerms",
                            describe(
                                list(8, 1, node_term()),
                                "Node selector terms; a node must match one of them.",
                            ),
                        )],
                    ),
                    "Terms that must be met when a Pod is scheduled.",
                ),
            ),
            (
                "preferredDuringSchedulingIgnoredDuringExecution",
                describe(
                    list(8, 0, preference),
                    "Terms that nodes should match, each with a weight.",
                ),
            ),
        ],
    );
    to_schema(object(
        &[],
        [
            (
                "nodeAffinity",
                describe(
                    node,
                    "Affinity to nodes: the nodes on which the instances may run.",
                ),
            ),
            (
                "podAffinity",
                describe(pod_affinity(), "Affinity to Pods: run near them."),
            ),
            (
                "podAntiAffinity",
                describe(
                    pod_affinity(),
                    "Anti-affinity to Pods: do not run near them.",
                ),
            ),
        ],
    ))
}

/// `spec.tolerations` of a Pod.
pub(super) fn tolerations(_: &mut SchemaGenerator) -> Schema {
    let toleration = object(
        &[],
        [
            ("key", text(317, "Key of the taint; without it, all keys.")),
            (
                "operator",
                one_of(
                    &["Equal", "Exists"],
                    "How the value is compared; Equal by default.",
                ),
            ),
            ("value", text(63, "Value of the taint.")),
            (
                "effect",
                one_of(
                    &["NoSchedule", "PreferNoSchedule", "NoExecute"],
                    "Effect of the taint; without it, all effects.",
                ),
            ),
            (
                "tolerationSeconds",
                json!({"type": "integer", "format": "int64", "description":
                    "How long a taint with the effect NoExecute is tolerated; without it, forever."}),
            ),
        ],
    );
    let mut list = list(32, 0, toleration);
    list["items"]["x-kubernetes-validations"] = json!([
        {
            "rule": "!has(self.operator) || self.operator != 'Exists' || !has(self.value) || self.value == ''",
            "message": "a toleration with the operator Exists has no value",
        },
        {
            "rule": "(has(self.key) && self.key != '') || (has(self.operator) && self.operator == 'Exists')",
            "message": "a toleration without a key needs the operator Exists",
        },
        {
            "rule": "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "message": "tolerationSeconds needs the effect NoExecute",
        },
    ]);
    to_schema(list)
}

/// `spec.topologySpreadConstraints` of a Pod.
pub(super) fn topology_spread_constraints(_: &mut SchemaGenerator) -> Schema {
    let honor = |what: &str| one_of(&["Honor", "Ignore"], what);
    let constraint = object(
        &["maxSkew", "topologyKey", "whenUnsatisfiable"],
        [
            (
                "maxSkew",
                json!({"type": "integer", "format": "int32", "minimum": 1, "maximum": 99, "description":
                    "Maximum difference in the number of instances between two topology domains."}),
            ),
            (
                "topologyKey",
                required_text(
                    317,
                    "Node label whose values are the topology domains, for example topology.kubernetes.io/zone.",
                ),
            ),
            (
                "whenUnsatisfiable",
                one_of(
                    &["DoNotSchedule", "ScheduleAnyway"],
                    "What happens to a Pod that cannot be spread.",
                ),
            ),
            (
                "labelSelector",
                selector("Pods that are counted; the instances of this cluster by default."),
            ),
            (
                "matchLabelKeys",
                names("Labels of the Pod whose values the counted Pods must have, too."),
            ),
            (
                "minDomains",
                json!({"type": "integer", "format": "int32", "minimum": 1, "maximum": 1000, "description":
                    "Minimum number of topology domains; only with DoNotSchedule."}),
            ),
            (
                "nodeAffinityPolicy",
                honor(
                    "Honor counts only the nodes that nodeSelector and affinity allow, Ignore counts all; Honor by default.",
                ),
            ),
            (
                "nodeTaintsPolicy",
                honor(
                    "Honor counts only the nodes whose taints are tolerated, Ignore counts all; Ignore by default.",
                ),
            ),
        ],
    );
    let mut list = list(8, 0, constraint);
    list["items"]["x-kubernetes-validations"] = json!([{
        "rule": "!has(self.minDomains) || self.whenUnsatisfiable == 'DoNotSchedule'",
        "message": "minDomains needs whenUnsatisfiable: DoNotSchedule",
    }]);
    // As in a Pod: the API server refuses two entries with the same keys.
    list["x-kubernetes-list-type"] = json!("map");
    list["x-kubernetes-list-map-keys"] = json!(["topologyKey", "whenUnsatisfiable"]);
    to_schema(list)
}

fn node_term() -> Value {
    let expressions = |what| {
        let operators = &["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"];
        describe(list(8, 0, expression(operators)), what)
    };
    object(
        &[],
        [
            (
                "matchExpressions",
                expressions("Requirements on labels of the node."),
            ),
            (
                "matchFields",
                expressions("Requirements on fields of the node."),
            ),
        ],
    )
}

fn pod_affinity() -> Value {
    let preference = object(
        &["weight", "podAffinityTerm"],
        [
            ("weight", weight()),
            (
                "podAffinityTerm",
                describe(pod_term(), "Pods to run near, or not."),
            ),
        ],
    );
    object(
        &[],
        [
            (
                "requiredDuringSchedulingIgnoredDuringExecution",
                describe(
                    list(8, 0, pod_term()),
                    "Terms that must be met when a Pod is scheduled.",
                ),
            ),
            (
                "preferredDuringSchedulingIgnoredDuringExecution",
                describe(
                    list(8, 0, preference),
                    "Terms that should be met when a Pod is scheduled, each with a weight.",
                ),
            ),
        ],
    )
}

fn pod_term() -> Value {
    object(
        &["topologyKey"],
        [
            ("labelSelector", selector("Selects Pods by their labels.")),
            (
                "topologyKey",
                required_text(317, "Node label whose values are the topology domains."),
            ),
            (
                "namespaces",
                names("Namespaces of the Pods; without them, this one."),
            ),
            (
                "namespaceSelector",
                selector("Selects the namespaces of the Pods by their labels."),
            ),
            (
                "matchLabelKeys",
                names("Labels of the Pod whose values the selected Pods must have, too."),
            ),
            (
                "mismatchLabelKeys",
                names("Labels of the Pod whose values the selected Pods must not have."),
            ),
        ],
    )
}

fn selector(what: &str) -> Value {
    let operators = &["In", "NotIn", "Exists", "DoesNotExist"];
    let fields = [
        (
            "matchLabels",
            describe(labels(), "Labels that must match exactly."),
        ),
        (
            "matchExpressions",
            describe(list(8, 0, expression(operators)), "Requirements on labels."),
        ),
    ];
    describe(object(&[], fields), what)
}

fn expression(operators: &[&str]) -> Value {
    let value = json!({"type": "string", "maxLength": 63});
    object(
        &["key", "operator"],
        [
            ("key", required_text(317, "Name of the label.")),
            (
                "operator",
                one_of(operators, "How the values are compared."),
            ),
            (
                "values",
                describe(list(32, 0, value), "Values to compare the label with."),
            ),
        ],
    )
}

fn labels() -> Value {
    json!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {
            "type": "string",
            "maxLength": 63,
            "pattern": "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$",
        },
    })
}

fn weight() -> Value {
    json!({"type": "integer", "format": "int32", "minimum": 1, "maximum": 100, "description": "Weight of the term, from 1 to 100."})
}

fn names(what: &str) -> Value {
    let name = json!({"type": "string", "minLength": 1, "maxLength": 317});
    describe(list(8, 0, name), what)
}

fn required_text(length_max: u32, what: &str) -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": length_max, "description": what})
}

fn text(length_max: u32, what: &str) -> Value {
    json!({"type": "string", "maxLength": length_max, "description": what})
}

fn one_of(values: &[&str], what: &str) -> Value {
    json!({"type": "string", "enum": values, "description": what})
}

fn list(max: u32, min: u32, items: Value) -> Value {
    let mut list = json!({"type": "array", "maxItems": max, "items": items});
    if min > 0 {
        list["minItems"] = json!(min);
    }
    list
}

fn object<const N: usize>(required: &[&str], properties: [(&str, Value); N]) -> Value {
    let properties: Map<String, Value> = properties
        .into_iter()
        .map(|(name, schema)| (name.to_owned(), schema))
        .collect();
    let mut object = json!({"type": "object", "properties": properties});
    if !required.is_empty() {
        object["required"] = json!(required);
    }
    object
}

fn describe(mut schema: Value, what: &str) -> Value {
    schema["description"] = json!(what);
    schema
}

fn to_schema(schema: Value) -> Schema {
    schema.try_into().unwrap_or_default()
}
