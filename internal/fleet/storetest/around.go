package storetest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/fleet"
)

// What an implementation's own specs need, too.

// Watch watches a store until the spec ends.
func Watch(ctx context.Context, store fleet.Store) <-chan *fleet.Snapshot {
	ctx, cancel := context.WithCancel(ctx)
	ginkgo.DeferCleanup(cancel)
	return store.Watch(ctx)
}

// Instances are those that a store holds.
func Instances(ctx context.Context, store fleet.Store) []*fleet.Instance {
	ginkgo.GinkgoHelper()
	snapshot, err := store.Snapshot(ctx)
	Expect(err).NotTo(HaveOccurred())
	return snapshot.Instances
}

// FillDisk takes all that is left of the disk under dir, which should be a small
// one, and says how to give it back.
func FillDisk(dir string) (free func()) {
	ginkgo.GinkgoHelper()
	path := filepath.Join(dir, "filler")
	file, err := os.Create(path)
	Expect(err).NotTo(HaveOccurred())
	defer file.Close()
	for err == nil {
		_, err = file.Write(make([]byte, 512))
	}
	Expect(errors.Is(err, syscall.ENOSPC)).To(BeTrue(), "%v", err)
	return func() { Expect(os.Remove(path)).To(Succeed()) }
}
