package main

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// revisionAnnotation holds a hash of the source of a child: a child with the same hash is not written.
const revisionAnnotation = "database.io/peer-revision"

// template is a child of a DatabaseCluster as the operator renders it, with words where values of a cluster belong.
type template struct {
	text  string
	named string
	empty func() client.Object
}

// readTemplates reads the children that `benchmarks bench` had the operator render: both make the same.
func readTemplates(path string) ([]template, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var manifests []json.RawMessage
	if err := json.Unmarshal(text, &manifests); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	kinds := map[string]func() client.Object{
		"ConfigMap":           func() client.Object { return &corev1.ConfigMap{} },
		"Service":             func() client.Object { return &corev1.Service{} },
		"PodDisruptionBudget": func() client.Object { return &policyv1.PodDisruptionBudget{} },
		"StatefulSet":         func() client.Object { return &appsv1.StatefulSet{} },
	}
	templates := make([]template, 0, len(manifests))
	for _, manifest := range manifests {
		var head metav1.PartialObjectMetadata
		if err := json.Unmarshal(manifest, &head); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		empty, known := kinds[head.Kind]
		if !known {
			return nil, fmt.Errorf("%s: nothing is known of the kind %q", path, head.Kind)
		}
		templates = append(templates, template{text: string(manifest), named: head.Name, empty: empty})
	}
	return templates, nil
}

// render makes the child of this cluster.
func (t template) render(cluster *DatabaseCluster) (client.Object, error) {
	text := strings.NewReplacer(
		"the-namespace", cluster.Namespace,
		"the-name", cluster.Name,
		"the-uid", string(cluster.UID),
		"the-image", cluster.Spec.Image,
		"the-cpu", cluster.Spec.Resources.CPU,
		"the-memory", cluster.Spec.Resources.Memory,
		"the-size", cluster.Spec.Storage.Size,
	).Replace(t.text)
	child := t.empty()
	if err := json.Unmarshal([]byte(text), child); err != nil {
		return nil, err
	}
	if set, is := child.(*appsv1.StatefulSet); is {
		set.Spec.Replicas = &cluster.Spec.Replicas
	}
	child.SetAnnotations(map[string]string{revisionAnnotation: revision(cluster)})
	return child, nil
}

// name is that of the child of this cluster, which needs no rendering.
func (t template) name(cluster *DatabaseCluster) string {
	return strings.Replace(t.named, "the-name", cluster.Name, 1)
}

// revision is a hash of the source of the children of a cluster.
func revision(cluster *DatabaseCluster) string {
	return fmt.Sprintf("%s/%d", cluster.UID, cluster.Generation)
}

// secret is created once and never changed.
func secret(cluster *DatabaseCluster) *corev1.Secret {
	host := fmt.Sprintf("%s-rw.%s.svc", cluster.Name, cluster.Namespace)
	password := rand.Text()
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name:      secretName(cluster),
			Namespace: cluster.Namespace,
			Labels: map[string]string{
				"app.kubernetes.io/name":       "postgresql",
				"app.kubernetes.io/instance":   cluster.Name,
				"app.kubernetes.io/component":  "database",
				"app.kubernetes.io/part-of":    cluster.Name,
				"app.kubernetes.io/managed-by": "peer",
			},
		},
		Type: corev1.SecretTypeOpaque,
		StringData: map[string]string{
			"username":             "app",
			"password":             password,
			"host":                 host,
			"port":                 "5432",
			"dbname":               "app",
			"uri":                  fmt.Sprintf("postgresql://app:%s@%s:5432/app", password, host),
			"replication-password": rand.Text(),
			"cluster-uid":          string(cluster.UID),
		},
	}
}

func secretName(cluster *DatabaseCluster) string { return cluster.Name + "-app" }
