// Only for its files: the CustomResourceDefinitions against which the PodMonitor is checked.
module databasecluster.example/schemas

go 1.26.0

require github.com/prometheus-operator/prometheus-operator v0.85.0
