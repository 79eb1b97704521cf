package sqlite_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gexec"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/sqlite"
	"github.com/mrgc/mrgc/internal/fleet/storetest"
)

// The test binary run with writerEnv set to a store's path is a process that
// registers writerIDEnv, beats writerBeatsEnv times (for ever when that is
// negative), drains "shared" after each beat, and prints a line for each.
const (
	writerEnv      = "MRGC_TEST_FLEET_STORE"
	writerIDEnv    = "MRGC_TEST_FLEET_ID"
	writerBeatsEnv = "MRGC_TEST_FLEET_BEATS"
)

func runWriter(path string) int {
	if err := write(context.Background(), path, os.Getenv(writerIDEnv), os.Getenv(writerBeatsEnv)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func write(ctx context.Context, path, id, beats string) error {
	count, err := strconv.Atoi(beats)
	if err != nil {
		return err
	}
	store, err := sqlite.Open(ctx, sqlite.Config{Path: path})
	if err != nil {
		return err
	}
	if err := store.Register(ctx, instance(id)); err != nil {
		return err
	}
	for i := 0; i != count; i++ {
		if err := store.Heartbeat(ctx, fleet.Heartbeat{ID: id, Load: fleet.Load{Running: i + 1}}); err != nil {
			return err
		}
		if err := store.SetDraining(ctx, "shared", true); err != nil {
			return err
		}
		fmt.Println(i + 1)
	}
	return store.Close()
}

var _ = Describe("Processes", func() {
	It("that write at once all take effect", func(ctx SpecContext) {
		const processes, beats = 6, 100
		path := storePath()
		store := open(ctx, path)
		Expect(store.Register(ctx, instance("shared"))).To(Succeed())
		snapshots := storetest.Watch(ctx, store)

		var sessions []*gexec.Session
		for i := range processes {
			session, err := gexec.Start(writer(path, fmt.Sprintf("use1-%d", i), beats), nil, GinkgoWriter)
			Expect(err).NotTo(HaveOccurred())
			DeferCleanup(func() { session.Kill().Wait() })
			sessions = append(sessions, session)
		}
		for _, session := range sessions {
			Eventually(session, "60s").Should(gexec.Exit(0))
		}
		Eventually(snapshots, "10s").Should(Receive(HaveField("Instances", SatisfyAll(
			HaveLen(1+processes),
			ContainElement(SatisfyAll(HaveField("ID", "shared"),
				HaveField("Version", int64(1+processes*beats)), HaveField("Draining", true))),
			ContainElements(beatsOf(processes, beats)),
		))))
	}, SpecTimeout(2*time.Minute))

	It("that create the store at once share it", func(ctx SpecContext) {
		path := storePath()
		var sessions []*gexec.Session
		for i := range 4 {
			session, err := gexec.Start(writer(path, fmt.Sprintf("use1-%d", i), 0), nil, GinkgoWriter)
			Expect(err).NotTo(HaveOccurred())
			DeferCleanup(func() { session.Kill().Wait() })
			sessions = append(sessions, session)
		}
		for _, session := range sessions {
			Eventually(session, "60s").Should(gexec.Exit(0))
		}
		Expect(storetest.Instances(ctx, open(ctx, path))).To(HaveLen(4))
		Expect(filepath.Glob(filepath.Join(filepath.Dir(path), "*"))).To(ConsistOf(
			path, path+"-wal", path+"-shm"), "nothing is left of making it")
	}, SpecTimeout(2*time.Minute))

	It("that are killed in mid-traffic leave a store that reads and writes", func(ctx SpecContext) {
		path := storePath()
		setup := open(ctx, path)
		Expect(setup.Register(ctx, instance("shared"))).To(Succeed())
		Expect(setup.Close()).To(Succeed()) // so that nobody but the killed ever has it open

		for round := range 5 {
			id := fmt.Sprintf("use1-%d", round)
			printed := killMidTraffic(ctx, writer(path, id, -1), 20*(round+1))

			store := open(ctx, path)
			Expect(storetest.Instances(ctx, store)).To(ContainElement(SatisfyAll(
				HaveField("ID", id), HaveField("Load.Running", BeNumerically(">=", printed)))))
			Expect(store.Heartbeat(ctx, fleet.Heartbeat{ID: id})).To(Succeed())
			Expect(store.Close()).To(Succeed())
			Expect(integrity(ctx, path)).To(Equal("ok"))
		}
	}, SpecTimeout(2*time.Minute))
})

func writer(path, id string, beats int) *exec.Cmd {
	GinkgoHelper()
	self, err := os.Executable()
	Expect(err).NotTo(HaveOccurred())
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), writerEnv+"="+path, writerIDEnv+"="+id, writerBeatsEnv+"="+strconv.Itoa(beats))
	return cmd
}

// killMidTraffic kills a writer once it has done a number of beats, and says
// how many it reported before it died.
func killMidTraffic(ctx context.Context, cmd *exec.Cmd, after int) (reported int) {
	GinkgoHelper()
	cmd.Stderr = GinkgoWriter
	stdout, err := cmd.StdoutPipe()
	Expect(err).NotTo(HaveOccurred())
	Expect(cmd.Start()).To(Succeed())
	unhook := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer unhook()
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		reported, err = strconv.Atoi(lines.Text())
		Expect(err).NotTo(HaveOccurred())
		if reported == after {
			Expect(cmd.Process.Kill()).To(Succeed())
		}
	}
	Expect(cmd.Wait()).To(MatchError("signal: killed"))
	Expect(reported).To(BeNumerically(">=", after))
	return reported
}

func beatsOf(processes, beats int) []any {
	var matchers []any
	for i := range processes {
		matchers = append(matchers, SatisfyAll(HaveField("ID", fmt.Sprintf("use1-%d", i)),
			HaveField("Version", int64(1+beats)), HaveField("Load.Running", beats)))
	}
	return matchers
}

func integrity(ctx context.Context, path string) string {
	GinkgoHelper()
	var result string
	Expect(openSQL(path).QueryRowContext(ctx, "PRAGMA integrity_check").Scan(&result)).To(Succeed())
	return result
}
