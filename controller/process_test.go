package controller_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/internal/dynamo"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/dynamodb/dynamodblocal"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/open"
	"github.com/mrgc/mrgc/internal/state/schema"
)

// The test binary run with processEnv set to a store's address is a controller of
// a region, with a loop that launches instances as files of a folder. It prints
// its admin's address.
const (
	processEnv = "MRGC_TEST_CONTROLLER_STATE"
	regionEnv  = "MRGC_TEST_CONTROLLER_REGION"
	worldEnv   = "MRGC_TEST_CONTROLLER_WORLD"
	leaseEnv   = "MRGC_TEST_CONTROLLER_LEASE"
)

func runProcess(address string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := control(ctx, address); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func control(ctx context.Context, address string) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	store, err := open.Store(ctx, address, log)
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	length, err := time.ParseDuration(os.Getenv(leaseEnv))
	if err != nil {
		return err
	}
	admin, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	loop := controller.Runner(folderScaler(os.Getenv(worldEnv)))
	if os.Getenv(cloudEnv) != "" {
		if loop, err = cloudScaler(ctx); err != nil {
			return err
		}
	}
	c, err := controller.New(controller.Config{
		Region: fleet.Region(os.Getenv(regionEnv)), Regions: []fleet.Region{"use1", "use2"}, Name: "test",
		Store: store, Lease: length, Admin: admin, Logger: log,
		Loops: []controller.Runner{loop},
	})
	if err != nil {
		return err
	}
	fmt.Println(admin.Addr())
	return c.Run(ctx)
}

func folderScaler(dir string) toy {
	return scaler(
		func(context.Context, int64) (int, error) {
			files, err := os.ReadDir(dir)
			return len(files), err
		},
		func(_ context.Context, id string, _ launch) error {
			file, err := os.OpenFile(filepath.Join(dir, id), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if errors.Is(err, os.ErrExist) {
				return nil
			}
			if err != nil {
				return err
			}
			return file.Close()
		},
	)
}

// process is a controller in a process of its own.
type process struct {
	*exec.Cmd
	admin string
}

type site struct {
	address, world string
	lease          time.Duration
}

// sqliteSite is a place for controllers on one machine.
func sqliteSite(lease time.Duration) site {
	return site{"sqlite:" + filepath.Join(GinkgoT().TempDir(), "state.db"), GinkgoT().TempDir(), lease}
}

func (s site) start(region string) *process {
	GinkgoHelper()
	self, err := os.Executable()
	Expect(err).NotTo(HaveOccurred())
	p := &process{Cmd: exec.Command(self)}
	p.Env = append(os.Environ(), processEnv+"="+s.address, regionEnv+"="+region, worldEnv+"="+s.world, leaseEnv+"="+s.lease.String(),
		"AWS_ACCESS_KEY_ID=local", "AWS_SECRET_ACCESS_KEY=local")
	p.Stderr = GinkgoWriter
	stdout, err := p.StdoutPipe()
	Expect(err).NotTo(HaveOccurred())
	Expect(p.Start()).To(Succeed())
	DeferCleanup(func() {
		_ = p.Process.Kill()
		_ = p.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	Expect(err).NotTo(HaveOccurred())
	p.admin = "http://" + strings.TrimSpace(line)
	return p
}

func (p *process) get(path string) (string, error) {
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(p.admin + path)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

// token that a process leads with; 0: it does not, or does not answer.
func (p *process) token() int64 {
	body, err := p.get("/status")
	var status controller.Status
	if err != nil || json.Unmarshal([]byte(body), &status) != nil {
		return 0
	}
	return status.Leases[0].Token
}

func (s site) instances() int {
	files, err := os.ReadDir(s.world)
	Expect(err).NotTo(HaveOccurred())
	return len(files)
}

// dynamoSite is a place for controllers on a DynamoDB of the spec's own.
func dynamoSite(ctx context.Context, lease time.Duration) (site, *dynamo.Client) {
	GinkgoHelper()
	if missing := dynamodblocal.Missing(); missing != "" {
		Skip(missing)
	}
	server, err := dynamodblocal.Start(ctx, dynamodblocal.Config{Log: GinkgoWriter})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(server.Kill)
	s := site{"dynamodb:?region=us-east-1&endpoint=" + server.Endpoint(), GinkgoT().TempDir(), lease}
	return s, tablesAt(ctx, s.address)
}

func tablesAt(ctx context.Context, address string) *dynamo.Client {
	GinkgoHelper()
	GinkgoT().Setenv("AWS_ACCESS_KEY_ID", "local")
	GinkgoT().Setenv("AWS_SECRET_ACCESS_KEY", "local")
	at, err := open.Tables(address)
	Expect(err).NotTo(HaveOccurred())
	client, err := dynamo.NewClient(ctx, at.Settings)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(client.Close)
	for _, table := range schema.Tables("")[1:] {
		table.Regions = nil
		_, err := client.Ensure(ctx, table)
		Expect(err).NotTo(HaveOccurred())
	}
	return client
}

var _ = Describe("Two controllers of a region", func() {
	takeOver := func(s site) {
		GinkgoHelper()
		first := s.start("use1")
		Eventually(first.token, "10s", "50ms").ShouldNot(BeZero())
		second := s.start("use1")
		Eventually(s.instances, "10s", "50ms").Should(Equal(3))
		Consistently(second.token, "1s").Should(BeZero())
		before := first.token()

		Expect(first.Process.Kill()).To(Succeed()) // kill -9
		died := time.Now()
		Eventually(second.token, "10s", "20ms").Should(BeNumerically(">", before))
		AddReportEntry("taken over after", time.Since(died))
		Expect(os.RemoveAll(filepath.Join(s.world, firstOf(s.world)))).To(Succeed())
		Eventually(s.instances, "5s", "20ms").Should(Equal(3), "the second does the first's work")

		third := s.start("use1")
		Eventually(third.get, "10s").WithArguments("/status").Should(ContainSubstring(`"leading":false`))
		Expect(second.Process.Signal(syscall.SIGTERM)).To(Succeed())
		asked := time.Now()
		Eventually(third.token, "10s", "20ms").Should(BeNumerically(">", before+1))
		AddReportEntry("handed over after", time.Since(asked))
		Expect(second.Wait()).To(Succeed())
	}

	It("take over in less than 10 s when the leader is killed, on DynamoDB", func(ctx SpecContext) {
		s, _ := dynamoSite(ctx, 5*time.Second) // the default
		takeOver(s)
	}, SpecTimeout(2*time.Minute))

	It("take over in less than 10 s when the leader is killed, on a file", func(ctx SpecContext) {
		takeOver(sqliteSite(5 * time.Second))
	}, SpecTimeout(2*time.Minute))

	It("are one again after the leader was stopped for longer than its lease, and went on", func(ctx SpecContext) {
		s := sqliteSite(time.Second)
		first := s.start("use1")
		Eventually(first.token, "10s", "20ms").ShouldNot(BeZero())
		second := s.start("use1")
		Expect(first.Process.Signal(syscall.SIGSTOP)).To(Succeed())
		Eventually(second.token, "10s", "20ms").ShouldNot(BeZero())
		Expect(first.Process.Signal(syscall.SIGCONT)).To(Succeed())
		Eventually(first.get, "10s").WithArguments("/status").Should(ContainSubstring(`"leading":false`))
		Expect(os.RemoveAll(filepath.Join(s.world, firstOf(s.world)))).To(Succeed())
		Eventually(s.instances, "5s", "20ms").Should(Equal(3))
		Consistently(s.instances, "1s").Should(Equal(3))
	}, SpecTimeout(time.Minute))

	It("do nothing while DynamoDB is away, and go on when it is back", func(ctx SpecContext) {
		if missing := dynamodblocal.Missing(); missing != "" {
			Skip(missing)
		}
		local := dynamodblocal.Config{Log: GinkgoWriter, Dir: GinkgoT().TempDir()}
		server, err := dynamodblocal.Start(ctx, local)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(server.Kill)
		s := site{"dynamodb:?region=us-east-1&endpoint=" + server.Endpoint(), GinkgoT().TempDir(), time.Second}
		tablesAt(ctx, s.address)
		first, second := s.start("use1"), s.start("use1")
		token := func() int64 { return max(first.token(), second.token()) }
		Eventually(s.instances, "20s", "50ms").Should(Equal(3))
		before := token()

		server.Kill()
		Eventually(token, "10s", "50ms").Should(BeZero())
		Expect(os.RemoveAll(filepath.Join(s.world, firstOf(s.world)))).To(Succeed())
		Consistently(s.instances, "2s").Should(Equal(2))

		local.Port = server.Port
		back, err := dynamodblocal.Start(ctx, local)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(back.Kill)
		Eventually(s.instances, "20s", "50ms").Should(Equal(3))
		Expect(token()).To(BeNumerically(">", before))
	}, SpecTimeout(2*time.Minute))
})

func firstOf(dir string) string {
	GinkgoHelper()
	files, err := os.ReadDir(dir)
	Expect(err).NotTo(HaveOccurred())
	return files[0].Name()
}

var _ = Describe("Controllers that are killed at any time", func() {
	It("lose no instance and launch none twice", func(ctx SpecContext) {
		kills := 10
		if os.Getenv("MRGC_TEST_LONG") != "" {
			kills = 50
		}
		s, client := dynamoSite(ctx, 300*time.Millisecond)
		running := []*process{s.start("use1"), s.start("use1")}
		wanted := 3
		Eventually(s.instances, "20s", "20ms").Should(Equal(wanted))
		for range kills {
			wanted++
			setByHand(ctx, client, "desired_capacity", wanted)
			select { // the loop runs every 50 ms
			case <-ctx.Done():
			case <-time.After(rand.N(100 * time.Millisecond)):
			}
			victim := 0
			if running[1].token() != 0 {
				victim = 1
			}
			Expect(running[victim].Process.Kill()).To(Succeed())
			running[victim] = s.start("use1")
			Eventually(s.instances, "20s", "10ms").Should(BeNumerically(">=", wanted))
			Expect(s.instances()).To(Equal(wanted))
		}
		Consistently(s.instances, "1s").Should(Equal(wanted))
		store, err := open.Store(ctx, s.address, nil)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(store.Close)
		row, err := state.AutoscalingTable(store).Get(ctx, use1)
		Expect(err).NotTo(HaveOccurred())
		Expect(row.Value.DesiredCapacity).To(Equal(wanted))
		AddReportEntry("leaders, of which each but the last was killed", row.Fence)
	}, SpecTimeout(5*time.Minute))
})

var _ = Describe("A capacity that is written by hand", func() {
	It("is honoured, though that counts in no version, and whenever it is written", func(ctx SpecContext) {
		s, client := dynamoSite(ctx, time.Second)
		p := s.start("use1")
		Eventually(s.instances, "20s", "50ms").Should(Equal(3))
		for _, capacity := range []int{5, 6, 8} {
			setByHand(ctx, client, "desired_capacity", capacity)
			Eventually(s.instances, "10s", "50ms").Should(Equal(capacity))
		}
		Expect(p.token()).NotTo(BeZero())
	}, SpecTimeout(time.Minute))

	It("in the middle of a decision has it made again", func(ctx SpecContext) {
		s, client := dynamoSite(ctx, time.Second)
		store, err := open.Store(ctx, s.address, nil)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(store.Close)
		w := &world{launched: map[string]int{}}
		round := func() error {
			return scaler(w.observe, w.execute).Round(ctx, &controller.Leader{Store: store, Token: 1})
		}
		Expect(round()).To(Succeed())
		w.launched = map[string]int{}
		observations := 0
		w.before = func() {
			if observations++; observations == 1 {
				setByHand(ctx, client, "desired_capacity", 7)
			}
		}
		Expect(round()).To(Succeed())
		Expect(observations).To(Equal(2))
		Expect(w.launched).To(HaveLen(7))
		row, err := state.AutoscalingTable(store).Get(ctx, use1)
		Expect(err).NotTo(HaveOccurred())
		Expect(row.Value.DesiredCapacity).To(Equal(7))
	}, SpecTimeout(time.Minute))
})

var _ = Describe("Controllers of two regions", func() {
	It("measure how far each other's rows lag, and are alarmed when they do not come", func(ctx SpecContext) {
		// Two regions of an emulator: what is strongly consistent lies in one, and
		// nothing brings a heartbeat from one to the other.
		if missing := dynamodblocal.Missing(); missing != "" {
			Skip(missing)
		}
		server, err := dynamodblocal.Start(ctx, dynamodblocal.Config{Log: GinkgoWriter})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(server.Kill)
		east := site{"dynamodb:?region=us-east-1&endpoint=" + server.Endpoint(), GinkgoT().TempDir(), time.Second}
		west := site{"dynamodb:?region=us-east-2&strong-region=us-east-1&endpoint=" + server.Endpoint(), GinkgoT().TempDir(), time.Second}
		tablesAt(ctx, east.address)
		tablesAt(ctx, west.address)
		one, _ := east.start("use1"), west.start("use2")
		alarm := `mrgc_replication_lag_alarm{from="use2",region="use1"} `
		Eventually(one.get, "20s", "200ms").WithArguments("/metrics").Should(ContainSubstring(alarm + "1"))

		// Somebody replicates after all.
		replicated, err := open.Store(ctx, east.address, nil)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(replicated.Close)
		source, err := open.Store(ctx, west.address, nil)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(source.Close)
		Eventually(func(g Gomega) {
			beat, err := state.HeartbeatTable(source).Get(ctx, state.HeartbeatKey("use2"))
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(state.HeartbeatTable(replicated).Replace(ctx, beat)).To(Succeed())
			g.Expect(one.get("/metrics")).To(ContainSubstring(alarm + "0"))
		}, "30s", "100ms").Should(Succeed())
		beat, err := state.HeartbeatTable(replicated).Get(ctx, state.HeartbeatKey("use1"))
		Expect(err).NotTo(HaveOccurred())
		Expect(beat.Value.Lag).To(HaveKey(fleet.Region("use2")))
	}, SpecTimeout(2*time.Minute))
})

func setByHand(ctx context.Context, client *dynamo.Client, field string, value int) {
	GinkgoHelper()
	Expect(setNumber(ctx, client, field, value)).To(Succeed())
}
