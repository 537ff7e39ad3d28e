// Command provisioner makes the volumes of the built-in Kubernetes: one directory a claim, on the disk of
// the node that the scheduler chose, offered as a "local" volume.
//
// Local volumes rather than host paths, because only for the former does the kubelet apply fsGroup, which a
// pod that does not run as root needs in order to write.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v11/controller"
)

// driver is the name that a StorageClass gives as its provisioner.
const driver = "palisade.dev/local"

func main() {
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "provisioner: %v\n", err)
		os.Exit(1)
	}
}

func run() error {
	kubeconfig := flag.String("kubeconfig", "", "kubeconfig of the cluster")
	base := flag.String("base", "", "absolute directory under which every node has a directory of its name for its volumes")
	flag.Parse()
	if !filepath.IsAbs(*base) {
		return fmt.Errorf("--base must be an absolute directory, not %q", *base)
	}
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	controller.NewProvisionController(ctx, client, driver, volumes{*base}, controller.LeaderElection(false)).Run(ctx)
	return nil
}

// volumes provisions directories below base.
type volumes struct{ base string }

// Provision makes the directory of a claim on its node and describes it as a local volume.
func (v volumes) Provision(_ context.Context, options controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	if options.SelectedNode == nil {
		return nil, controller.ProvisioningFinished, errors.New("the StorageClass must have volumeBindingMode WaitForFirstConsumer")
	}
	node := options.SelectedNode.Name
	path := filepath.Join(v.base, node, options.PVName)
	if err := os.MkdirAll(path, 0o777); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	// Despite the umask: a pod without fsGroup may run as any user.
	if err := os.Chmod(path, 0o777); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	reclaim := corev1.PersistentVolumeReclaimDelete
	if options.StorageClass.ReclaimPolicy != nil {
		reclaim = *options.StorageClass.ReclaimPolicy
	}
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: options.PVName},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: reclaim,
			AccessModes:                   options.PVC.Spec.AccessModes,
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: options.PVC.Spec.Resources.Requests[corev1.ResourceStorage]},
			StorageClassName:              options.StorageClass.Name,
			PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
			}}}},
		},
	}, controller.ProvisioningFinished, nil
}

// Delete removes the directory of a released volume.
func (v volumes) Delete(_ context.Context, volume *corev1.PersistentVolume) error {
	if volume.Spec.Local == nil || !strings.HasPrefix(volume.Spec.Local.Path, v.base+string(filepath.Separator)) {
		return &controller.IgnoredError{Reason: "the volume is not a directory below " + v.base}
	}
	return os.RemoveAll(volume.Spec.Local.Path)
}

// SupportsBlock refuses raw block volumes, which directories cannot be.
func (volumes) SupportsBlock(context.Context) bool { return false }

var _ controller.BlockProvisioner = volumes{}
