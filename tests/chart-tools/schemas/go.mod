// Only for their files: the CustomResourceDefinitions against which PodMonitor and alerts, and the bundle for OLM, are
// checked.
module databasecluster.example/schemas

go 1.26.0

require (
	github.com/operator-framework/api v0.35.0
	github.com/prometheus-operator/prometheus-operator v0.85.0
)
