package dynamodb_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"
	"github.com/onsi/gomega/gexec"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/dynamodb"
	"github.com/mrgc/mrgc/internal/fleet/dynamodb/dynamodblocal"
	"github.com/mrgc/mrgc/internal/fleet/storetest"
)

// The test binary run with writerEnv set to an endpoint is a process that
// registers writerIDEnv in writerTableEnv, and then beats and drains "shared" as
// often as writerBeatsEnv says.
const (
	writerEnv      = "MRGC_TEST_FLEET_ENDPOINT"
	writerTableEnv = "MRGC_TEST_FLEET_TABLE"
	writerIDEnv    = "MRGC_TEST_FLEET_ID"
	writerBeatsEnv = "MRGC_TEST_FLEET_BEATS"
)

func runWriter(endpoint string) int {
	err := write(context.Background(), config(endpoint, os.Getenv(writerTableEnv)), os.Getenv(writerIDEnv), os.Getenv(writerBeatsEnv))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func write(ctx context.Context, cfg dynamodb.Config, id, beats string) error {
	count, err := strconv.Atoi(beats)
	if err != nil {
		return err
	}
	store, err := dynamodb.Open(ctx, cfg)
	if err != nil {
		return err
	}
	if err := store.Register(ctx, instance(id)); err != nil {
		return err
	}
	for i := range count {
		if err := store.Heartbeat(ctx, fleet.Heartbeat{ID: "shared", Load: fleet.Load{Running: i + 1}}); err != nil {
			return err
		}
		if err := store.SetDraining(ctx, "shared", true); err != nil {
			return err
		}
	}
	return store.Close()
}

var _ = Describe("Processes that write to one instance at once", func() {
	It("all take effect", func(ctx SpecContext) {
		const processes, beats = 2, 50
		cfg := createTable(ctx)
		store := open(ctx, cfg)
		Expect(store.Register(ctx, instance("shared"))).To(Succeed())
		var sessions []*gexec.Session
		for i := range processes {
			session, err := gexec.Start(writer(cfg, fmt.Sprintf("use1-%d", i), beats), nil, GinkgoWriter)
			Expect(err).NotTo(HaveOccurred())
			DeferCleanup(func() { session.Kill().Wait() })
			sessions = append(sessions, session)
		}
		for _, session := range sessions {
			Eventually(session, "60s").Should(gexec.Exit(0))
		}
		Expect(storetest.Instances(ctx, store)).To(ConsistOf(
			SatisfyAll(HaveField("ID", "shared"), HaveField("Version", int64(1+2*processes*beats)),
				HaveField("Draining", true), HaveField("Load.Running", beats)),
			HaveField("ID", "use1-0"), HaveField("ID", "use1-1"),
		))
	}, SpecTimeout(2*time.Minute))
})

func writer(cfg dynamodb.Config, id string, beats int) *exec.Cmd {
	GinkgoHelper()
	self, err := os.Executable()
	Expect(err).NotTo(HaveOccurred())
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), writerEnv+"="+cfg.Endpoint, writerTableEnv+"="+cfg.Table,
		writerIDEnv+"="+id, writerBeatsEnv+"="+strconv.Itoa(beats))
	return cmd
}

var _ = Describe("A running store whose DynamoDB is killed", func() {
	It("says so once, and goes on with what was there when it is back", func(ctx SpecContext) {
		needLocal()
		outage(ctx, dynamodblocal.Config{Dir: GinkgoT().TempDir()}, func(_ dynamodb.Config, store fleet.Store) {
			Expect(store.Heartbeat(ctx, fleet.Heartbeat{ID: "a"})).To(Succeed())
			Expect(storetest.Instances(ctx, store)).To(ConsistOf(HaveField("Version", int64(2))))
		})
	}, SpecTimeout(time.Minute))

	It("and comes back with nothing is told to register again", func(ctx SpecContext) {
		needLocal()
		outage(ctx, dynamodblocal.Config{}, func(cfg dynamodb.Config, store fleet.Store) {
			Expect(store.Heartbeat(ctx, fleet.Heartbeat{ID: "a"})).To(MatchError(ContainSubstring("check its name")))
			ensureTable(ctx, cfg)
			Expect(store.Heartbeat(ctx, fleet.Heartbeat{ID: "a"})).To(MatchError(fleet.ErrNotFound))
			Expect(store.Register(ctx, instance("a"))).To(Succeed())
		})
	}, SpecTimeout(time.Minute))
})

// outage kills a DynamoDB Local under a store that is watched, starts it again
// at the same address, lets the caller put things right, and expects the watch to
// go on by itself.
func outage(ctx context.Context, local dynamodblocal.Config, recoverWith func(dynamodb.Config, fleet.Store)) {
	GinkgoHelper()
	server := startLocal(ctx, local)
	log := gbytes.NewBuffer()
	address, leadTo := door()
	leadTo(server.Port)
	cfg := config("http://"+address, "gpu_instances")
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	ensureTable(ctx, cfg)
	store := open(ctx, cfg)
	Expect(store.Register(ctx, instance("a"))).To(Succeed())
	snapshots := storetest.Watch(ctx, store)
	Eventually(snapshots).Should(Receive(HaveField("Instances", HaveLen(1))))

	server.Kill()
	Expect(store.Heartbeat(ctx, fleet.Heartbeat{ID: "a"})).To(MatchError(ContainSubstring("cannot be reached")))
	Eventually(log, "10s").Should(gbytes.Say("fleet store cannot be read.*table=gpu_instances.*\n"))
	select {
	case <-snapshots: // read before, and not taken yet
	default:
	}
	Consistently(log, "1s").ShouldNot(gbytes.Say("."))
	Expect(snapshots).NotTo(Receive())

	leadTo(startLocal(ctx, local).Port)
	recoverWith(cfg, store)
	Eventually(snapshots, "15s").Should(Receive(HaveField("Instances", ConsistOf(HaveField("ID", "a")))))
	Eventually(log, "10s").Should(gbytes.Say("can be read again.*\n"))
	Expect(log).NotTo(gbytes.Say("."))
}

// door is an address behind which another server can be put, on another port: one that
// was killed may not get its own again, which anybody may have taken meanwhile, were it
// by the connections that look for it.
func door() (address string, leadTo func(port int)) {
	GinkgoHelper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	Expect(err).NotTo(HaveOccurred())
	var port atomic.Int64
	var passing sync.WaitGroup
	passing.Go(func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port.Load()))
			if err != nil {
				_ = in.Close()
				continue
			}
			for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
				passing.Go(func() {
					_, _ = io.Copy(way[0], way[1])
					_, _ = in.Close(), out.Close()
				})
			}
		}
	})
	DeferCleanup(func() { _ = listener.Close(); passing.Wait() })
	return listener.Addr().String(), func(to int) { port.Store(int64(to)) }
}
