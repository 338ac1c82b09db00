package main

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
)

// budgetReplicasMin is the number of instances from which on the operator makes a PodDisruptionBudget.
const budgetReplicasMin = 2

// reconciler brings DatabaseClusters to what their spec asks for.
type reconciler struct {
	client.Client
	recorder  events.EventRecorder
	templates []template
}

// Reconcile reads one DatabaseCluster, writes what is missing or of an older spec, and reports.
func (r *reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	var cluster DatabaseCluster
	if err := r.Get(ctx, request.NamespacedName, &cluster); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !cluster.DeletionTimestamp.IsZero() {
		if controllerutil.RemoveFinalizer(&cluster, finalizerName) {
			return ctrl.Result{}, client.IgnoreNotFound(r.Update(ctx, &cluster))
		}
		return ctrl.Result{}, nil
	}
	if controllerutil.AddFinalizer(&cluster, finalizerName) {
		if err := r.Update(ctx, &cluster); err != nil {
			return ctrl.Result{}, err
		}
	}
	if err := r.ensureSecret(ctx, &cluster); err != nil {
		return ctrl.Result{}, err
	}
	for _, template := range r.templates {
		if err := r.ensure(ctx, &cluster, template); err != nil {
			return ctrl.Result{}, err
		}
	}
	return ctrl.Result{}, r.report(ctx, &cluster)
}

func (r *reconciler) ensureSecret(ctx context.Context, cluster *DatabaseCluster) error {
	key := client.ObjectKey{Namespace: cluster.Namespace, Name: secretName(cluster)}
	err := r.Get(ctx, key, &corev1.Secret{})
	if !apierrors.IsNotFound(err) {
		return err
	}
	return r.create(ctx, cluster, secret(cluster))
}

// ensure creates the child, or updates it when it was generated from an older spec.
func (r *reconciler) ensure(ctx context.Context, cluster *DatabaseCluster, template template) error {
	existing := template.empty()
	if _, is := existing.(*policyv1.PodDisruptionBudget); is && cluster.Spec.Replicas < budgetReplicasMin {
		return nil
	}
	key := client.ObjectKey{Namespace: cluster.Namespace, Name: template.name(cluster)}
	err := r.Get(ctx, key, existing)
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return err
	}
	if !missing && existing.GetAnnotations()[revisionAnnotation] == revision(cluster) {
		return nil
	}
	child, err := template.render(cluster)
	if err != nil {
		return fmt.Errorf("render %s: %w", key, err)
	}
	if missing {
		return r.create(ctx, cluster, child)
	}
	child.SetResourceVersion(existing.GetResourceVersion())
	switch child := child.(type) {
	case *appsv1.StatefulSet:
		child.Spec.VolumeClaimTemplates = existing.(*appsv1.StatefulSet).Spec.VolumeClaimTemplates
	case *corev1.Service:
		child.Spec.ClusterIP = existing.(*corev1.Service).Spec.ClusterIP
		child.Spec.ClusterIPs = existing.(*corev1.Service).Spec.ClusterIPs
	}
	if err := controllerutil.SetControllerReference(cluster, child, r.Scheme()); err != nil {
		return err
	}
	return r.Update(ctx, child)
}

func (r *reconciler) create(ctx context.Context, cluster *DatabaseCluster, child client.Object) error {
	child.SetOwnerReferences(nil)
	if err := controllerutil.SetControllerReference(cluster, child, r.Scheme()); err != nil {
		return err
	}
	// The cache may not contain yet what the last reconcile created.
	return client.IgnoreAlreadyExists(r.Create(ctx, child))
}

// report writes the status when it changes, and emits an Event when the cluster becomes ready.
func (r *reconciler) report(ctx context.Context, cluster *DatabaseCluster) error {
	var set appsv1.StatefulSet
	key := client.ObjectKey{Namespace: cluster.Namespace, Name: cluster.Name + "-db"}
	if err := r.Get(ctx, key, &set); client.IgnoreNotFound(err) != nil {
		return err
	}
	before := cluster.DeepCopyObject().(*DatabaseCluster).Status
	wanted := cluster.Spec.Replicas
	observed := set.Generation > 0 && set.Status.ObservedGeneration >= set.Generation
	ready := observed && set.Annotations[revisionAnnotation] == revision(cluster) &&
		set.Status.ReadyReplicas == wanted && set.Status.UpdatedReplicas == wanted && set.Status.Replicas == wanted
	status := &cluster.Status
	status.Replicas = set.Status.Replicas
	status.ReadyReplicas = set.Status.ReadyReplicas
	status.Selector = fmt.Sprintf("app.kubernetes.io/component=database,app.kubernetes.io/instance=%s,app.kubernetes.io/name=postgresql", cluster.Name)
	status.ObservedGeneration = cluster.Generation
	switch {
	case ready:
		status.Phase = "Ready"
	case meta.IsStatusConditionTrue(before.Conditions, "Initialized"):
		status.Phase = "Scaling"
	default:
		status.Phase = "Creating"
	}
	message := fmt.Sprintf("%d of %d instances are ready", set.Status.ReadyReplicas, wanted)
	say := func(kind string, holds bool, reason, message string) {
		word := metav1.ConditionFalse
		if holds {
			word = metav1.ConditionTrue
		}
		meta.SetStatusCondition(&status.Conditions, metav1.Condition{
			Type: kind, Status: word, Reason: reason, Message: message, ObservedGeneration: cluster.Generation,
		})
	}
	say("Ready", ready, status.Phase, message)
	say("Progressing", !ready, status.Phase, message)
	say("Degraded", false, "AsExpected", "")
	if set.Status.ReadyReplicas > 0 {
		say("Initialized", true, "Initialized", "the volume of the primary has data")
	}
	if equality.Semantic.DeepEqual(before, *status) {
		return nil
	}
	if err := r.Status().Update(ctx, cluster); err != nil {
		return err
	}
	if ready && !meta.IsStatusConditionTrue(before.Conditions, "Ready") {
		r.recorder.Eventf(cluster, nil, corev1.EventTypeNormal, "DatabaseReady", "Reconciling", "ready with %d replicas", wanted)
	}
	return nil
}
