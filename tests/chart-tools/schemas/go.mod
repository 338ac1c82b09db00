// Only for their files: the CustomResourceDefinitions against which PodMonitors, alerts, the bundle for OLM and the recipe with
// VolumeSnapshots are checked.
module databasecluster.example/schemas

go 1.26.0

require (
	github.com/kubernetes-csi/external-snapshotter/client/v8 v8.7.0
	github.com/operator-framework/api v0.35.0
	github.com/prometheus-operator/prometheus-operator v0.85.0
)
