package controller_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/controller/accelerator"
	"github.com/mrgc/mrgc/controller/door"
	"github.com/mrgc/mrgc/controller/failover"
	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/dynamodb/dynamodblocal"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/open"
	"github.com/mrgc/mrgc/standin/devca"
	"github.com/mrgc/mrgc/standin/sigv4"
	"github.com/mrgc/mrgc/standin/softaccelerator"
)

// regions are three: a front door each, which answers by mutual TLS, a DynamoDB
// of which each region has its own tables but for those that are the same everywhere,
// and an accelerator.
type regions struct {
	ca       *devca.Authority
	fleet    *viewedWorld
	doors    map[fleet.Region]*frontDoor
	dynamo   string // URL
	api      string // URL of the accelerator's API
	signer   sigv4.Credentials
	inEffect *dialLog

	mu  sync.Mutex
	cut map[[2]fleet.Region]bool // guarded by mu: paths between regions' controllers and doors that lead nowhere
}

// frontDoor answers controllers, or is gone.
type frontDoor struct {
	server *httptest.Server
	mu     sync.Mutex
	dead   bool // guarded by mu
}

// ServeHTTP breaks the connection off while the door is dead.
func (d *frontDoor) ServeHTTP(http.ResponseWriter, *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		panic(http.ErrAbortHandler)
	}
}

func (d *frontDoor) is(dead bool) { d.mu.Lock(); defer d.mu.Unlock(); d.dead = dead }

// dialLog is what the accelerator says that is in effect, one after the other.
type dialLog struct {
	mu   sync.Mutex
	told []dialled // guarded by mu
}

type dialled struct {
	Region string
	Dial   int `json:"dial_percent"`
	Msg    string
}

func (l *dialLog) Write(line []byte) (int, error) {
	var one dialled
	if json.Unmarshal(bytes.TrimSpace(line), &one) == nil && one.Msg == "in effect" {
		l.mu.Lock()
		l.told = append(l.told, one)
		l.mu.Unlock()
	}
	return len(line), nil
}

// of gives a region's dials, by AWS's name of it.
func (l *dialLog) of(region fleet.Region) (dials []int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, one := range l.told {
		if one.Region == region.AWS() {
			dials = append(dials, one.Dial)
		}
	}
	return dials
}

func (r *regions) setCut(isCut bool, pairs ...[2]fleet.Region) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, pair := range pairs {
		r.cut[pair], r.cut[[2]fleet.Region{pair[1], pair[0]}] = isCut, isCut
	}
}

// isCut says whether a region's controller cannot reach another's door.
func (r *regions) isCut(from, to fleet.Region) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cut[[2]fleet.Region{from, to}]
}

func (r *regions) source(id identity.ID) *identity.Source {
	GinkgoHelper()
	dir := GinkgoT().TempDir()
	Expect(r.ca.WriteFiles(dir, id, time.Now())).To(Succeed())
	source, err := identity.Open(context.Background(), "dir:"+dir, "")
	Expect(err).NotTo(HaveOccurred())
	return source
}

func startRegions(ctx context.Context) *regions {
	GinkgoHelper()
	if missing := dynamodblocal.Missing(); missing != "" {
		Skip(missing)
	}
	server, err := dynamodblocal.Start(ctx, dynamodblocal.Config{Log: GinkgoWriter})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(server.Kill)
	r := &regions{
		fleet: &viewedWorld{}, doors: map[fleet.Region]*frontDoor{}, dynamo: server.Endpoint(), signer: sigv4.NewCredentials(),
		inEffect: &dialLog{}, cut: map[[2]fleet.Region]bool{},
	}
	r.ca, err = devca.New(time.Now())
	Expect(err).NotTo(HaveOccurred())
	config := softaccelerator.Config{
		Credentials: r.signer, Second: 10 * time.Millisecond, Deploy: 50 * time.Millisecond, Logger: slog.New(slog.NewJSONHandler(r.inEffect, nil)),
	}
	for _, region := range allRegions {
		d := &frontDoor{}
		d.server = httptest.NewUnstartedServer(d)
		d.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		d.server.EnableHTTP2 = true
		d.server.TLS = r.source(identity.ID{Region: string(region), Role: identity.RoleEnvoy}).ServerTLS(func(peer identity.ID) bool {
			return peer.Role == identity.RoleController
		})
		d.server.StartTLS()
		DeferCleanup(d.server.Close)
		r.doors[region] = d
		config.Groups = append(config.Groups, softaccelerator.Group{
			Region: region.AWS(), Endpoints: []softaccelerator.Endpoint{{ID: "arn:" + string(region), Address: d.server.Listener.Addr().String()}},
		})
		tablesAt(ctx, r.address(region))
	}
	service, err := softaccelerator.New(config)
	Expect(err).NotTo(HaveOccurred())
	api := httptest.NewServer(service)
	DeferCleanup(api.Close)
	r.api = api.URL
	life, stop := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- service.Run(life) }()
	DeferCleanup(func() { stop(); Expect(<-ran).To(Succeed()) })
	r.replicate()
	return r
}

// replicate has regions' heartbeats come to the others, which no emulator does.
func (r *regions) replicate() {
	GinkgoHelper()
	tables := map[fleet.Region]state.Table[state.Heartbeat]{}
	for _, region := range allRegions {
		store, err := open.Store(context.Background(), r.address(region), nil)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(store.Close)
		tables[region] = state.HeartbeatTable(store)
	}
	life, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-life.Done():
				return
			case <-tick.C:
			}
			for _, from := range allRegions {
				beat, err := tables[from].Get(life, state.HeartbeatKey(from))
				for _, to := range allRegions {
					if err == nil && to != from { // else there is none yet
						err = tables[to].Replace(life, beat)
					}
				}
			}
		}
	})
	DeferCleanup(func() { stop(); running.Wait() })
}

// address of a region's tables. No emulator keeps the strongly consistent ones in
// step, so that all regions use one's.
func (r *regions) address(region fleet.Region) string {
	return fmt.Sprintf("dynamodb:?region=%s&endpoint=%s&strong-region=us-east-1", region.AWS(), r.dynamo)
}

// start runs a region's controller until stop is called.
func (r *regions) start(ctx context.Context, region fleet.Region) (stop func()) {
	GinkgoHelper()
	log := slog.New(slog.NewTextHandler(GinkgoWriter, nil)).With("controller", region)
	store, err := open.Store(ctx, r.address(region), log)
	Expect(err).NotTo(HaveOccurred())
	names, at := map[string]fleet.Region{}, map[fleet.Region]string{}
	for _, name := range allRegions {
		names[name.AWS()], at[name] = name, r.doors[name].server.Listener.Addr().String()
	}
	driver, err := accelerator.Open(ctx, accelerator.Config{
		Settings: awsclient.Settings{
			Region: softaccelerator.HomeRegion, Endpoint: r.api,
			Credentials: credentials.NewStaticCredentialsProvider(r.signer.AccessKeyID, r.signer.SecretAccessKey, ""),
		},
		Listener: softaccelerator.ListenerARN, Regions: names,
	})
	Expect(err).NotTo(HaveOccurred())
	dials := controller.NewDials(driver, log)
	loop, err := controller.NewRouting(failover.Config{
		Regions: allRegions, Validate: 5 * time.Second, Hold: time.Second, Calm: 3 * time.Second,
	}, store, dials).Loop()
	Expect(err).NotTo(HaveOccurred())
	doors := door.New(r.source(identity.ID{Region: string(region), Role: identity.RoleController}), at)
	c, err := controller.New(controller.Config{
		Region: region, Regions: allRegions, Name: string(region), Store: store, Fleet: r.fleet, Lease: 2 * time.Second, Logger: log,
		Loops: []controller.Runner{loop},
		Door: func(ctx context.Context, to fleet.Region) error {
			if r.isCut(region, to) {
				return errors.New("no way there")
			}
			return doors.Ask(ctx, to)
		},
	})
	Expect(err).NotTo(HaveOccurred())
	life, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { dials.Run(life) })
	running.Go(func() {
		defer GinkgoRecover()
		Expect(c.Run(life)).To(Succeed())
	})
	stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		doors.Close()
		driver.Close()
		Expect(store.Close()).To(Succeed())
	})
	DeferCleanup(stop)
	return stop
}

// look reads what is stored.
func (r *regions) look(ctx context.Context, read func(state.Store)) {
	GinkgoHelper()
	store, err := open.Store(ctx, r.address("use1"), nil)
	Expect(err).NotTo(HaveOccurred())
	defer store.Close()
	read(store)
}

// routing is what was decided of each region.
func (r *regions) routing(ctx context.Context) (of map[fleet.Region]state.RegionRouting) {
	GinkgoHelper()
	r.look(ctx, func(store state.Store) {
		row, err := state.RoutingTable(store).Get(ctx, state.RoutingKey)
		if !errors.Is(err, state.ErrNotFound) {
			Expect(err).NotTo(HaveOccurred())
		}
		of = row.Value.Regions
	})
	return of
}

func (r *regions) drained(ctx context.Context) (of map[fleet.Region]bool) {
	GinkgoHelper()
	r.look(ctx, func(store state.Store) {
		var err error
		of, err = controller.Drained(ctx, store)
		Expect(err).NotTo(HaveOccurred())
	})
	return of
}

// leader is the region whose controller decides.
func (r *regions) leader(ctx context.Context) (region fleet.Region) {
	GinkgoHelper()
	r.look(ctx, func(store state.Store) {
		held, err := state.LeaseTable(store).Get(ctx, state.LeaseKey(controller.RoutingLease))
		Expect(err).NotTo(HaveOccurred())
		name, _, _ := strings.Cut(held.Value.Holder, "-")
		region = fleet.Region(name)
	})
	Expect(allRegions).To(ContainElement(region))
	return region
}

func (r *regions) phase(ctx context.Context, region fleet.Region) func() state.Failover {
	return func() state.Failover { return r.routing(ctx)[region].State }
}

var _ = Describe("Controllers of three regions, on DynamoDB, with an accelerator", func() {
	var (
		r    *regions
		stop map[fleet.Region]func()
	)
	BeforeEach(func(ctx SpecContext) {
		r, stop = startRegions(ctx), map[fleet.Region]func(){}
		for _, region := range allRegions {
			stop[region] = r.start(ctx, region)
		}
		// Who leads has views of all from when their numbers have risen.
		Eventually(func() map[fleet.Region]state.RegionRouting { return r.routing(ctx) }, "20s", "200ms").Should(
			HaveEach(HaveField("State", state.Normal)))
		Eventually(func() int { return len(r.routing(ctx)) }, "20s", "200ms").Should(Equal(3))
	})

	It("turn a region's dial down when it dies, with the controller that leads, and up in steps when it is back", func(ctx SpecContext) {
		dead := r.leader(ctx)
		r.doors[dead].is(true)
		stop[dead]()
		Eventually(func() []int { return r.inEffect.of(dead) }, "30s", "100ms").Should(Equal([]int{0}))
		Eventually(r.phase(ctx, dead), "10s", "200ms").Should(Equal(state.FailoverActive))
		Expect(r.routing(ctx)[dead]).To(And(HaveField("Dial", 0), HaveField("Drain", true), HaveField("Reason", ContainSubstring("down"))))
		Expect(r.drained(ctx)).To(Equal(map[fleet.Region]bool{dead: true}))

		r.doors[dead].is(false)
		r.start(ctx, dead)
		Eventually(r.phase(ctx, dead), "60s", "200ms").Should(Equal(state.Normal))
		Eventually(func() []int { return r.inEffect.of(dead) }, "5s", "100ms").Should(Equal([]int{0, 10, 25, 50, 100}))
		for _, region := range allRegions {
			if region != dead {
				Expect(r.inEffect.of(region)).To(BeEmpty())
			}
		}
		Expect(r.drained(ctx)).To(BeEmpty())
	}, SpecTimeout(2*time.Minute))

	It("turn nobody's down when each sees only itself, and never more than one when one is cut off", func(ctx SpecContext) {
		apart := [][2]fleet.Region{{"use1", "use2"}, {"use1", "usw2"}, {"use2", "usw2"}}
		r.setCut(true, apart...)
		Eventually(r.phase(ctx, "use1"), "20s", "200ms").Should(Equal(state.Degraded), "it is noticed")
		Consistently(func() bool {
			return len(r.inEffect.of("use1"))+len(r.inEffect.of("use2"))+len(r.inEffect.of("usw2")) == 0
		}, "12s", "200ms").Should(BeTrue())

		r.setCut(false, apart[2]) // the other two see each other again
		Eventually(func() []int { return r.inEffect.of("use1") }, "30s", "100ms").Should(Equal([]int{0}))
		Consistently(func() bool { return len(r.inEffect.of("use2"))+len(r.inEffect.of("usw2")) == 0 }, "3s", "200ms").Should(BeTrue())
	}, SpecTimeout(2*time.Minute))
})
