package main

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// groupVersion is that of the CRD in deploy/base/crd.yaml.
var groupVersion = schema.GroupVersion{Group: "database.io", Version: "v1"}

// finalizerName is the peer's own, so that it is never taken for the operator.
const finalizerName = "database.io/peer"

// DatabaseCluster as far as the peer reads and writes it.
type DatabaseCluster struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              DatabaseClusterSpec   `json:"spec,omitempty"`
	Status            DatabaseClusterStatus `json:"status,omitempty"`
}

// DatabaseClusterSpec is what users ask for.
type DatabaseClusterSpec struct {
	Replicas  int32  `json:"replicas"`
	Image     string `json:"image"`
	Resources struct {
		CPU    string `json:"cpu,omitempty"`
		Memory string `json:"memory,omitempty"`
	} `json:"resources,omitempty"`
	Storage struct {
		Size      string  `json:"size,omitempty"`
		ClassName *string `json:"className,omitempty"`
		Retain    string  `json:"retain,omitempty"`
	} `json:"storage,omitempty"`
}

// DatabaseClusterStatus is what the peer reports.
type DatabaseClusterStatus struct {
	Replicas           int32              `json:"replicas"`
	ReadyReplicas      int32              `json:"readyReplicas"`
	Selector           string             `json:"selector"`
	ObservedGeneration int64              `json:"observedGeneration"`
	Phase              string             `json:"phase,omitempty"`
	Conditions         []metav1.Condition `json:"conditions,omitempty"`
}

// DatabaseClusterList is what the API server answers to a list.
type DatabaseClusterList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []DatabaseCluster `json:"items"`
}

// DeepCopyObject copies all that is shared otherwise.
func (c *DatabaseCluster) DeepCopyObject() runtime.Object {
	copied := *c
	c.ObjectMeta.DeepCopyInto(&copied.ObjectMeta)
	if c.Spec.Storage.ClassName != nil {
		name := *c.Spec.Storage.ClassName
		copied.Spec.Storage.ClassName = &name
	}
	copied.Status.Conditions = append([]metav1.Condition(nil), c.Status.Conditions...)
	return &copied
}

// DeepCopyObject copies all that is shared otherwise.
func (l *DatabaseClusterList) DeepCopyObject() runtime.Object {
	copied := *l
	l.ListMeta.DeepCopyInto(&copied.ListMeta)
	copied.Items = make([]DatabaseCluster, len(l.Items))
	for i := range l.Items {
		copied.Items[i] = *l.Items[i].DeepCopyObject().(*DatabaseCluster)
	}
	return &copied
}
