package sqlite_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gexec"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/sqlite"
	"github.com/mrgc/mrgc/internal/fleet/storetest"
)

// smallDiskEnv names the small disk to a run of the test binary that has one.
const smallDiskEnv = "MRGC_TEST_SMALL_DISK"

// onSmallDisk runs the body of the present spec with a disk of 1 MiB to itself:
// a tmpfs, in a mount namespace, in which the test binary runs the spec again.
func onSmallDisk(body func(dir string)) {
	GinkgoHelper()
	if dir := os.Getenv(smallDiskEnv); dir != "" {
		body(dir)
		return
	}
	dir := GinkgoT().TempDir()
	mounted := func(program string, args ...string) *exec.Cmd {
		mount := []string{"-rm", "sh", "-c", `mount -t tmpfs -o size=1m none "$0" && exec "$@"`, dir, program}
		return exec.Command("unshare", append(mount, args...)...)
	}
	if output, err := mounted("true").CombinedOutput(); err != nil {
		Skip("a small disk takes Linux, unshare, and leave to make namespaces: " + string(output))
	}
	self, err := os.Executable()
	Expect(err).NotTo(HaveOccurred())
	spec := regexp.QuoteMeta(CurrentSpecReport().FullText())
	again := mounted(self, "-test.run", "TestSQLite", "-ginkgo.focus", spec, "-ginkgo.fail-on-empty", "-ginkgo.no-color")
	again.Env = append(os.Environ(), smallDiskEnv+"="+dir)
	session, err := gexec.Start(again, GinkgoWriter, GinkgoWriter)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() { session.Kill().Wait() })
	Eventually(session, "60s").Should(gexec.Exit())
	Expect(session.ExitCode()).To(BeZero(), "%s", session.Out.Contents())
}

var _ = Describe("A disk that is full", func() {
	beFull := MatchError(ContainSubstring("disk is full"))

	It("costs the store nothing that it has taken, and is over when there is room", func(ctx SpecContext) {
		onSmallDisk(func(dir string) {
			path := filepath.Join(dir, "fleet.db")
			store := open(ctx, path)
			Expect(store.Register(ctx, instance("a"))).To(Succeed())
			snapshots := storetest.Watch(ctx, store)
			free := storetest.FillDisk(dir)
			taken := beatUntilRefused(ctx, store, beFull)

			By("refusing every other change, too")
			Expect(store.Register(ctx, instance("b"))).To(beFull)
			Expect(store.SetDraining(ctx, "a", true)).To(beFull)
			Expect(store.Deregister(ctx, "a")).To(beFull)

			By("reading what it has taken, for whoever opens it now as well")
			unharmed := ConsistOf(And(HaveField("ID", "a"), HaveField("Load.Running", taken),
				HaveField("Version", int64(1+taken)), HaveField("Draining", false)))
			Expect(storetest.Instances(ctx, store)).To(unharmed)
			other := open(ctx, path)
			Expect(storetest.Instances(ctx, other)).To(unharmed)
			Expect(other.Close()).To(Succeed())
			Eventually(snapshots).Should(Receive(HaveField("Instances", unharmed)))
			Expect(integrity(ctx, path)).To(Equal("ok"))

			free()
			Expect(store.Register(ctx, instance("b"))).To(Succeed())
			Expect(store.Heartbeat(ctx, fleet.Heartbeat{ID: "a", Load: fleet.Load{Running: taken + 1}})).To(Succeed())
			recovered := ConsistOf(HaveField("ID", "b"), And(HaveField("ID", "a"), HaveField("Version", int64(2+taken))))
			Eventually(snapshots).Should(Receive(HaveField("Instances", recovered)))
			Expect(integrity(ctx, path)).To(Equal("ok"))
		})
	}, SpecTimeout(2*time.Minute))

	It("does not keep a store from being closed, and opened again as it was", func(ctx SpecContext) {
		onSmallDisk(func(dir string) {
			path := filepath.Join(dir, "fleet.db")
			store := open(ctx, path)
			Expect(store.Register(ctx, instance("a"))).To(Succeed())
			free := storetest.FillDisk(dir)
			taken := beatUntilRefused(ctx, store, beFull)
			_ = store.Close() // what its log has stays there, if the file cannot take it

			again := open(ctx, path)
			Expect(storetest.Instances(ctx, again)).To(ConsistOf(HaveField("Version", int64(1+taken))))
			free()
			Expect(again.Heartbeat(ctx, fleet.Heartbeat{ID: "a"})).To(Succeed())
			Expect(storetest.Instances(ctx, again)).To(ConsistOf(HaveField("Version", int64(2+taken))))
			Expect(integrity(ctx, path)).To(Equal("ok"))
		})
	}, SpecTimeout(2*time.Minute))

	It("takes no new store, and has nothing left of the attempt", func(ctx SpecContext) {
		onSmallDisk(func(dir string) {
			path := filepath.Join(dir, "fleet.db")
			free := storetest.FillDisk(dir)
			_, err := sqlite.Open(ctx, sqlite.Config{Path: path})
			Expect(err).To(HaveOccurred())
			free()
			Expect(filepath.Glob(filepath.Join(dir, "*"))).To(BeEmpty())
			Expect(open(ctx, path).Register(ctx, instance("a"))).To(Succeed())
		})
	}, SpecTimeout(2*time.Minute))
})

// beatUntilRefused sends instance "a"'s heartbeats, the n-th with n running
// requests, until one is refused, and counts those that were taken.
func beatUntilRefused(ctx context.Context, store fleet.Store, refused OmegaMatcher) (taken int) {
	GinkgoHelper()
	for {
		err := store.Heartbeat(ctx, fleet.Heartbeat{ID: "a", Load: fleet.Load{Running: taken + 1}})
		if err != nil {
			Expect(err).To(refused)
			return taken
		}
		taken++
		Expect(taken).To(BeNumerically("<", 10_000), "the disk is full")
	}
}
