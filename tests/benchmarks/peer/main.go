// Command peer is the operator that a team would write in an afternoon, and well: controller-runtime, one leader,
// ten workers, a cache of everything that it owns. It makes the same children from the same specs as
// databasecluster-operator, writes a status with the same conditions and publishes the same event, so that
// `benchmarks bench` can put both side by side. It has no shards, no fence, no diagnosis of Pods, and repairs no child
// that another client edited.
package main

import (
	"flag"
	"fmt"
	"os"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
)

func main() {
	children := flag.String("children", "", "file with the children to make, as the operator renders them")
	metrics := flag.String("metrics", "127.0.0.1:0", "where to serve metrics")
	workers := flag.Int("workers", 10, "reconciles at once, as --concurrency of the operator")
	typical := flag.Bool("typical", false, "keep what the libraries do by default: their limit of requests, and managedFields in the cache")
	flag.Parse()
	if err := run(*children, *metrics, *workers, *typical); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

func run(children, metrics string, workers int, typical bool) error {
	ctrl.SetLogger(zap.New())
	templates, err := readTemplates(children)
	if err != nil {
		return err
	}
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return err
	}
	scheme.AddKnownTypes(groupVersion, &DatabaseCluster{}, &DatabaseClusterList{})
	metav1.AddToGroupVersion(scheme, groupVersion)
	config, err := ctrl.GetConfig()
	if err != nil {
		return err
	}
	cacheOptions := cache.Options{}
	if !typical {
		// No limit of its own: the API server's priority and fairness is what holds it back, as it does the operator.
		config.QPS = -1
		cacheOptions.DefaultTransform = cache.TransformStripManagedFields()
	}
	manager, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:                        scheme,
		Metrics:                       metricsserver.Options{BindAddress: metrics},
		Cache:                         cacheOptions,
		LeaderElection:                true,
		LeaderElectionID:              "peer",
		LeaderElectionNamespace:       "default",
		LeaderElectionReleaseOnCancel: true,
	})
	if err != nil {
		return err
	}
	reconciler := &reconciler{
		Client:    manager.GetClient(),
		recorder:  manager.GetEventRecorder("peer"),
		templates: templates,
	}
	err = ctrl.NewControllerManagedBy(manager).
		For(&DatabaseCluster{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Owns(&appsv1.StatefulSet{}).
		Owns(&corev1.ConfigMap{}).
		Owns(&corev1.Service{}).
		Owns(&corev1.Secret{}).
		Owns(&policyv1.PodDisruptionBudget{}).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		Complete(reconciler)
	if err != nil {
		return err
	}
	return manager.Start(ctrl.SetupSignalHandler())
}
