package router_test

import (
	"encoding/json"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	orcav3 "github.com/cncf/xds/go/xds/data/orca/v3"
	orcaservicev3 "github.com/cncf/xds/go/xds/service/orca/v3"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/loadreport"
	"github.com/mrgc/mrgc/standin/devca"
)

// reporting is a parent that reports load and does nothing else.
type reporting struct {
	orcaservicev3.UnimplementedOpenRcaServiceServer
	instance *fleet.Instance
	stop     func()

	subscribed atomic.Int64 // streams since the start
	listeners  atomic.Int64 // streams that are open
	interval   atomic.Int64 // asked for last
	hangUp     chan error   // ends a stream

	mu     sync.Mutex
	report *orcav3.OrcaLoadReport // guarded by mu: sent again and again; nil: nothing is
}

// startReporting starts one that answers as whoever id is.
func startReporting(ca *devca.Authority, region fleet.Region, id string, as identity.ID) *reporting {
	GinkgoHelper()
	return startReportingOn(listen(), ca, region, id, as)
}

func startReportingOn(listener net.Listener, ca *devca.Authority, region fleet.Region, id string, as identity.ID) *reporting {
	GinkgoHelper()
	p := &reporting{hangUp: make(chan error)}
	p.says(loadreport.Report{Queued: 1, Slots: 4})
	service := grpc.NewServer()
	orcaservicev3.RegisterOpenRcaServiceServer(service, p)
	server := &http.Server{ // as the real one has it
		Handler: service, TLSConfig: sourceOf(ca, as).ServerTLS(func(peer identity.ID) bool { return peer == routerID }),
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.ServeTLS(listener, "", "")
	}()
	p.stop = sync.OnceFunc(func() {
		_ = server.Close()
		<-ended
	})
	DeferCleanup(p.stop)
	p.instance = &fleet.Instance{
		ID: id, Region: region, Address: listener.Addr().String(), Models: []string{model},
		Health: fleet.Health{Enclave: true, Engine: true}, HeartbeatAt: time.Now(),
	}
	return p
}

// says replaces what is reported.
func (p *reporting) says(report loadreport.Report) { p.sends(loadreport.Encode(report)) }

func (p *reporting) sends(message *orcav3.OrcaLoadReport) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report = message
}

func (p *reporting) StreamCoreMetrics(req *orcaservicev3.OrcaLoadReportRequest, stream orcaservicev3.OpenRcaService_StreamCoreMetricsServer) error {
	p.subscribed.Add(1)
	p.listeners.Add(1)
	defer p.listeners.Add(-1)
	p.interval.Store(int64(req.GetReportInterval().AsDuration()))
	for {
		p.mu.Lock()
		report := p.report
		p.mu.Unlock()
		if report != nil {
			if err := stream.Send(report); err != nil {
				return err
			}
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case err := <-p.hangUp:
			return err
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// follows publishes a fleet of the instances.
func (r *running) follows(parents ...*reporting) {
	GinkgoHelper()
	var instances []*fleet.Instance
	for _, p := range parents {
		copied := *p.instance
		instances = append(instances, &copied)
	}
	Eventually(r.store.snapshots).Should(BeSent(fleet.NewSnapshot(time.Now(), instances)))
}

// reports is what the router says of an instance's load.
func (r *running) reports(id string) func() (loadreport.Report, error) {
	return func() (loadreport.Report, error) {
		report, age := r.router.Report(id)
		if age != loadreport.Fresh {
			return report, errAge{age}
		}
		return report, nil
	}
}

type errAge struct{ age loadreport.Age }

func (e errAge) Error() string { return e.age.String() }

func (r *running) age(id string) func() loadreport.Age {
	return func() loadreport.Age {
		_, age := r.router.Report(id)
		return age
	}
}

var _ = Describe("The load of the region's instances", func() {
	var r *running
	BeforeEach(func() { r = newRouter() })

	It("is known from their parents' reports as they come", func() {
		r.start()
		a, b := startReporting(r.ca, "use1", "use1-0", parentID("use1", "use1-0")), startReporting(r.ca, "use1", "use1-1", parentID("use1", "use1-1"))
		Expect(r.age("use1-0")()).To(Equal(loadreport.Missing))
		r.follows(a, b)
		Eventually(r.reports("use1-0")).Should(HaveField("Queued", 1))
		a.says(loadreport.Report{Queued: 7})
		Eventually(r.reports("use1-0")).Should(HaveField("Queued", 7))
		Eventually(r.reports("use1-1")).Should(HaveField("Queued", 1))
		Expect(time.Duration(a.interval.Load())).To(BeNumerically("<", 100*time.Millisecond), "no report waits for the next")

		r.follows(a, b) // as they were
		Consistently(a.subscribed.Load, "100ms").Should(BeEquivalentTo(1))
	})

	It("is followed of those alone that are ready, and in the region or one that it spills to", func() {
		r.start()
		away, sick := startReporting(r.ca, "usw2", "usw2-0", parentID("usw2", "usw2-0")), startReporting(r.ca, "use1", "use1-1", parentID("use1", "use1-1"))
		here := startReporting(r.ca, "use1", "use1-0", parentID("use1", "use1-0"))
		sick.instance.Health = fleet.Health{Reason: "sick"}
		r.follows(away, sick, here)
		Eventually(r.reports("use1-0")).Should(HaveField("Queued", 1))
		Expect(r.age("usw2-0")()).To(Equal(loadreport.Missing))
		Expect(away.subscribed.Load() + sick.subscribed.Load()).To(BeZero())

		sick.instance.Health = fleet.Health{Enclave: true, Engine: true}
		r.follows(sick)
		Eventually(r.reports("use1-1")).Should(HaveField("Queued", 1))
		Eventually(here.listeners.Load).Should(BeZero())
		Expect(r.age("use1-0")()).To(Equal(loadreport.Missing), "who left is forgotten")
	})

	It("is followed less often in a region that it spills to, whose round trip is measured on the way", func() {
		r.start()
		Expect(r.adminPage("/regions").text).To(MatchJSON(`{"regions": [{"region": "use1", "round_trip_seconds": 0}, {"region": "use2", "round_trip_seconds": null}]}`))
		far := startReporting(r.ca, "use2", "use2-0", parentID("use2", "use2-0"))
		r.follows(far)
		Eventually(r.reports("use2-0")).Should(HaveField("Queued", 1))
		Expect(time.Duration(far.interval.Load())).To(Equal(time.Second))
		if runtime.GOOS != "linux" {
			Skip("round trips are measured on Linux")
		}
		shown := func(page string) func() string { return func() string { return r.adminPage(page).text } }
		Eventually(shown("/regions")).Should(MatchRegexp(`"use2",\s*"round_trip_seconds": ?0\.0`))
		Expect(r.adminPage("/metrics").text).To(ContainSubstring(`mrgc_region_round_trip_seconds{region="use1",to="use2"} `))

		r.follows(startReporting(r.ca, "use1", "use1-0", parentID("use1", "use1-0")))
		Eventually(shown("/regions")).Should(MatchRegexp(`"use2",\s*"round_trip_seconds": ?null`), "nobody is there to measure")
	})

	It("is followed to where an instance has moved", func() {
		r.start()
		before, after := startReporting(r.ca, "use1", "use1-0", parentID("use1", "use1-0")), startReporting(r.ca, "use1", "use1-0", parentID("use1", "use1-0"))
		r.follows(before)
		Eventually(r.reports("use1-0")).Should(HaveField("Queued", 1))
		after.says(loadreport.Report{Queued: 9})
		r.follows(after)
		Eventually(r.reports("use1-0")).Should(HaveField("Queued", 9))
		Eventually(before.listeners.Load).Should(BeZero())
	})

	It("is taken from nobody but the instance's own parent", func() {
		r.start()
		p := startReporting(r.ca, "use1", "use1-0", parentID("use1", "use1-1"))
		r.follows(p)
		Eventually(r.log).Should(gbytes.Say("no load reports from instance.*use1-0.*not admitted"))
		Expect(p.subscribed.Load()).To(BeZero())
		Expect(r.age("use1-0")()).To(Equal(loadreport.Missing))
	})

	It("is followed again after a stream breaks, and each outage is logged once", func() {
		r.start()
		p := startReporting(r.ca, "use1", "use1-0", parentID("use1", "use1-0"))
		r.follows(p)
		Eventually(r.reports("use1-0")).Should(HaveField("Queued", 1))
		p.sends(nil)
		p.hangUp <- status.Error(codes.Unavailable, "breaks off")
		Eventually(r.log).Should(gbytes.Say("breaks off"))
		p.hangUp <- status.Error(codes.Unavailable, "breaks off again")
		p.says(loadreport.Report{Queued: 2})
		Eventually(r.reports("use1-0")).Should(HaveField("Queued", 2))
		Expect(r.log).NotTo(gbytes.Say("breaks off again"))
	})

	It("is followed again when a parent is back at its address", func() {
		r.start()
		p := startReporting(r.ca, "use1", "use1-0", parentID("use1", "use1-0"))
		r.follows(p)
		Eventually(r.reports("use1-0")).Should(HaveField("Queued", 1))
		p.stop()
		Eventually(r.log).Should(gbytes.Say("no load reports from instance"))
		listener, err := net.Listen("tcp", p.instance.Address)
		Expect(err).NotTo(HaveOccurred())
		back := startReportingOn(listener, r.ca, "use1", "use1-0", parentID("use1", "use1-0"))
		back.says(loadreport.Report{Queued: 3})
		Eventually(r.reports("use1-0")).WithTimeout(5 * time.Second).Should(HaveField("Queued", 3))
	})

	It("is asked for anew when a parent goes silent", func() {
		r.silence = 50 * time.Millisecond
		r.start()
		p := startReporting(r.ca, "use1", "use1-0", parentID("use1", "use1-0"))
		r.follows(p)
		Eventually(r.reports("use1-0")).Should(HaveField("Queued", 1))
		p.sends(nil)
		Eventually(p.subscribed.Load).Should(BeNumerically(">", 1))
		Expect(r.log).To(gbytes.Say("gone silent for 50ms"))
	})

	It("is not taken from a report that is not valid", func() {
		r.start()
		p := startReporting(r.ca, "use1", "use1-0", parentID("use1", "use1-0"))
		broken := loadreport.Encode(loadreport.Report{})
		broken.NamedMetrics["num_requests_waiting"] = -1
		p.sends(broken)
		r.follows(p)
		Eventually(r.log).Should(gbytes.Say("num_requests_waiting is negative"))
		Expect(r.age("use1-0")()).To(Equal(loadreport.Missing))
	})

	It("is in the weights that Envoy gets, as reports come", func() {
		r.start()
		busy, idle := startReporting(r.ca, "use1", "use1-0", parentID("use1", "use1-0")), startReporting(r.ca, "use1", "use1-1", parentID("use1", "use1-1"))
		busy.says(loadreport.Report{Queued: 4, Running: 4, Slots: 4})
		idle.says(loadreport.Report{Slots: 4})
		r.follows(busy, idle)
		shown := func(page string) func() string { return func() string { return r.adminPage(page).text } }
		Eventually(shown("/weights")).WithTimeout(5 * time.Second).Should(And(
			MatchRegexp(`"use1-0"[^}]*"weight": 50\b`), MatchRegexp(`"use1-1"[^}]*"weight": 100\b`)))

		Eventually(shown("/fleet")).Should(And(MatchRegexp(`(?s)"use1-0"[^}]*"score": 50\b`), MatchRegexp(`(?s)"use1-1"[^}]*"score": 100\b`)))
		Eventually(shown("/metrics")).Should(And(
			ContainSubstring(`mrgc_score{instance="use1-0",region="use1"} 50`), ContainSubstring(`mrgc_score_changes_total{region="use1"} 2`)))
		busy.says(loadreport.Report{Queued: 2, Running: 4, Slots: 4})
		Eventually(shown("/metrics")).Should(And(
			ContainSubstring(`mrgc_score{instance="use1-0",region="use1"} 63`), ContainSubstring(`mrgc_score_changes_total{region="use1"} 3`)))
	})

	It("is shown to the operator, as a page and as metrics", func() {
		r.start()
		p := startReporting(r.ca, "use1", "use1-0", parentID("use1", "use1-0"))
		mute := startReporting(r.ca, "use1", "use1-1", parentID("use1", "use1-1"))
		p.says(loadreport.Report{
			Queued: 3, Running: 2, Slots: 4, KVCacheUse: 0.5, TokensInFlight: 1536, RequestsPerSecond: 2, ErrorsPerSecond: 1,
			UnreadTokens: 512, ReadTokensPerSecond: 20_000, RequestDuration: 1500 * time.Millisecond,
			GPU: loadreport.GPU{Utilization: 0.25, Memory: 0.75, TemperatureC: 61}, Models: []loadreport.Model{{Name: model, Version: "v7"}},
		})
		mute.sends(nil)
		r.follows(p, mute)
		Eventually(r.reports("use1-0")).Should(HaveField("Queued", 3))

		var page struct{ Instances []map[string]any }
		shown := r.adminPage("/load")
		Expect(shown.contentType).To(Equal("application/json"))
		Expect(json.Unmarshal([]byte(shown.text), &page)).To(Succeed())
		Expect(page.Instances).To(HaveLen(2))
		Expect(page.Instances[0]["age_seconds"]).To(BeNumerically("<", 1))
		delete(page.Instances[0], "age_seconds")
		Expect(page.Instances).To(Equal([]map[string]any{
			{
				"instance": "use1-0", "age": "fresh", "queued": 3.0, "running": 2.0, "slots": 4.0, "kv_cache_use": 0.5,
				"tokens_in_flight": 1536.0, "unread_tokens": 512.0, "read_tokens_per_second": 20_000.0, "request_seconds": 1.5, "requests_per_second": 2.0, "errors_per_second": 1.0,
				"gpu":    map[string]any{"utilization": 0.25, "memory": 0.75, "temperature_celsius": 61.0},
				"models": map[string]any{model: "v7"},
			},
			{
				"instance": "use1-1", "age": "missing", "queued": 0.0, "running": 0.0, "slots": 0.0, "kv_cache_use": 0.0,
				"tokens_in_flight": 0.0, "unread_tokens": 0.0, "read_tokens_per_second": 0.0, "request_seconds": 0.0, "requests_per_second": 0.0, "errors_per_second": 0.0, "models": map[string]any{},
			},
		}))

		metrics := r.adminPage("/metrics").text
		for _, line := range []string{
			`mrgc_load_queued{instance="use1-0",region="use1"} 3`,
			`mrgc_load_running{instance="use1-0",region="use1"} 2`,
			`mrgc_load_slots{instance="use1-0",region="use1"} 4`,
			`mrgc_load_kv_cache_ratio{instance="use1-0",region="use1"} 0.5`,
			`mrgc_load_tokens_in_flight{instance="use1-0",region="use1"} 1536`,
			`mrgc_load_unread_tokens{instance="use1-0",region="use1"} 512`,
			`mrgc_load_read_tokens_per_second{instance="use1-0",region="use1"} 20000`,
			`mrgc_load_request_seconds{instance="use1-0",region="use1"} 1.5`,
			`mrgc_load_gpu_utilization_ratio{instance="use1-0",region="use1"} 0.25`,
			`mrgc_load_gpu_memory_ratio{instance="use1-0",region="use1"} 0.75`,
			`mrgc_load_gpu_temperature_celsius{instance="use1-0",region="use1"} 61`,
			`mrgc_load_report_age_seconds{instance="use1-1",region="use1"} -1`,
		} {
			Expect(metrics).To(ContainSubstring("\n" + line + "\n"))
		}
		Expect(metrics).NotTo(ContainSubstring(`mrgc_load_queued{instance="use1-1"`))

		p.says(loadreport.Report{})
		Eventually(r.reports("use1-0")).Should(HaveField("Queued", 0))
		Expect(r.adminPage("/metrics").text).NotTo(ContainSubstring("mrgc_load_gpu"))
		Expect(r.adminPage("/load").text).NotTo(ContainSubstring(`"gpu"`))
	})
})
