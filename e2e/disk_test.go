package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/fleet/storetest"
)

// startClusterOnSmallDisk gives the cluster's state a disk of its own: a tmpfs
// in a mount namespace, which the spec sees by way of a process inside.
func startClusterOnSmallDisk(args ...string) *cluster {
	GinkgoHelper()
	dir := GinkgoT().TempDir()
	mounted := func(command ...string) *exec.Cmd {
		mount := []string{"-rm", "sh", "-c", `mount -t tmpfs -o size=16m none "$0" && exec "$@"`, dir}
		return exec.Command("unshare", append(mount, command...)...)
	}
	if output, err := mounted("true").CombinedOutput(); err != nil {
		Skip("a small disk takes Linux, unshare, and leave to make namespaces: " + string(output))
	}
	c := &cluster{}
	c.start(mounted(upCommand(dir, args...)...))
	c.stateDir = fmt.Sprintf("/proc/%d/root%s", c.session.Command.Process.Pid, dir)
	c.await()
	return c
}

// heartbeatAges are how long ago each instance was last heard of, as the router
// has it from the store.
func (c *cluster) heartbeatAges(ctx context.Context) []float64 {
	GinkgoHelper()
	var page struct {
		Instances []struct {
			HeartbeatAge float64 `json:"heartbeat_age_seconds"`
		} `json:"instances"`
	}
	Expect(json.Unmarshal([]byte(get(ctx, c.env()["MRGC_ADMIN_USE1"]+"/fleet")), &page)).To(Succeed())
	var ages []float64
	for _, in := range page.Instances {
		ages = append(ages, in.HeartbeatAge)
	}
	return ages
}

var _ = Describe("A fault of the disk", func() {
	It("costs no request while it is full under the store, and heartbeats are stored again when it is not", func(ctx SpecContext) {
		const staleAfter, interval = 15.0, 5.0 // seconds, mrgc.yaml's defaults
		engine := newToldEngine()
		c := startClusterOnSmallDisk("--regions", "use1", "--instances", "2", "--engine-url", engine.server.URL, "--model-name", "told", "--ask=false")
		before := c.pids()
		ages := func() []float64 { return c.heartbeatAges(ctx) }
		Expect(ages()).To(And(HaveLen(2), HaveEach(BeNumerically("<", staleAfter))))

		free := func() {}
		Expect(c.during("disk full under the store", func() {
			free = storetest.FillDisk(c.stateDir)
			Eventually(ctx, ages, "60s").Should(And(HaveLen(2), HaveEach(BeNumerically(">", staleAfter))), "no heartbeat fits")
		})).To(BeEmpty())
		Expect(c.keys(ctx)).To(ContainSubstring(`"attestation"`))
		free()
		began := time.Now()
		Eventually(ctx, ages, "30s").Should(And(HaveLen(2), HaveEach(BeNumerically("<=", interval))))
		reportFault("disk no longer full: heartbeats are stored after %s", since(began))
		Expect(c.during("disk no longer full", func() {})).To(BeEmpty())
		Expect(c.pids()).To(Equal(before), "nobody died of it")
	}, NodeTimeout(3*time.Minute))
})
