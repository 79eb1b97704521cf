package parent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	orcaservicev3 "github.com/cncf/xds/go/xds/service/orca/v3"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/loadreport"
	"github.com/mrgc/mrgc/parent"
)

// listening is a stream of load reports.
type listening struct {
	reports chan loadreport.Report
	ended   chan error // gets why
}

// listen subscribes to the instance's reports, as whoever id is.
func (in *instance) listen(ctx context.Context, id identity.ID, interval time.Duration) *listening {
	GinkgoHelper()
	conn, err := grpc.NewClient("passthrough:///"+in.listener.Addr().String(),
		grpc.WithTransportCredentials(credentials.NewTLS(in.source(id).ClientTLS(func(peer identity.ID) bool { return peer == parentID }))))
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(conn.Close)
	stream, err := orcaservicev3.NewOpenRcaServiceClient(conn).StreamCoreMetrics(ctx,
		&orcaservicev3.OrcaLoadReportRequest{ReportInterval: durationpb.New(interval)}, grpc.WaitForReady(true))
	Expect(err).NotTo(HaveOccurred())
	l := &listening{reports: make(chan loadreport.Report), ended: make(chan error, 1)}
	go func() {
		for {
			message, err := stream.Recv()
			if err != nil {
				l.ended <- err
				return
			}
			report, err := loadreport.Decode(message)
			if err != nil {
				l.ended <- err
				return
			}
			select {
			case l.reports <- report:
			case <-stream.Context().Done():
			}
		}
	}()
	return l
}

// newest waits for a report that is as matcher says.
func (l *listening) newest(ctx context.Context, matcher OmegaMatcher) (report loadreport.Report) {
	GinkgoHelper()
	Eventually(ctx, l.reports).Should(Receive(&report, matcher))
	return report
}

// idle matches a report without requests.
func idle() OmegaMatcher { return And(HaveField("Running", 0), HaveField("Queued", 0)) }

func fastReports(c *parent.Config) {
	c.BusyReportInterval, c.IdleReportInterval = 10*time.Millisecond, 20*time.Millisecond
}

var _ = Describe("An instance's load reports", func() {
	It("say what engine, GPUs and parent know", func(ctx SpecContext) {
		gpu := loadreport.GPU{Utilization: 0.5, Memory: 0.25, TemperatureC: 61}
		in := start(fastReports, func(c *parent.Config) {
			c.Instance.Models = []string{"other", "m"}
			c.ModelVersions = map[string]string{"m": "v7"}
			c.ReadGPU = func() (loadreport.GPU, error) { return gpu, nil }
		})
		in.guard.measures("vllm:num_requests_running 2\nvllm:num_requests_waiting 3\nvllm:kv_cache_usage_perc 0.75\n")
		in.listen(ctx, routerID, 0).newest(ctx, Equal(loadreport.Report{
			Running: 2, Queued: 3, Slots: 4, KVCacheUse: 0.75, GPU: gpu,
			Models: []loadreport.Model{{Name: "m", Version: "v7"}, {Name: "other"}},
		}))
	}, NodeTimeout(specTimeout))

	It("are for the routers of other regions, too", func(ctx SpecContext) {
		start().listen(ctx, identity.ID{Region: "usw2", Role: identity.RoleRouter}, 0).newest(ctx, idle())
	}, NodeTimeout(specTimeout))

	DescribeTable("are not for", func(ctx SpecContext, id identity.ID) {
		in := start()
		var err error
		Eventually(ctx, in.listen(ctx, id, 0).ended).Should(Receive(&err))
		Expect(status.Code(err)).To(Equal(codes.PermissionDenied), "%v", err)
	},
		Entry("an Envoy", NodeTimeout(specTimeout), envoyID),
		Entry("another parent", NodeTimeout(specTimeout), identity.ID{Region: region, Instance: "use1-9", Role: identity.RoleParent}),
	)

	It("come at once when the first request does, and count it until it has ended", func(ctx SpecContext) {
		in := start(func(c *parent.Config) { // nothing but the request can bring the second report
			c.IdleReportInterval, c.ProbeInterval = time.Hour, time.Hour
			c.BusyReportInterval = 10 * time.Millisecond
		})
		in.guard.measures(idleMetrics)
		entered, leave := make(chan struct{}, 1), make(chan struct{})
		in.enclave.answers(waitsIn(entered, leave))
		l := in.listen(ctx, routerID, 0)
		l.newest(ctx, idle())
		req := in.sealed(ctx, "request")
		req.Header.Set(api.HeaderSize, "512/1024")
		answered := in.sending(req)
		l.newest(ctx, And(HaveField("Running", 1), HaveField("Queued", 0), HaveField("TokensInFlight", 1536)))
		close(leave)
		var resp *http.Response
		Eventually(ctx, answered).Should(Receive(&resp))
		Expect(readAll(resp)).To(Equal("sealed answer"))
		Expect(resp.Body.Close()).To(Succeed())
		l.newest(ctx, And(idle(), HaveField("TokensInFlight", 0), HaveField("RequestsPerSecond", BeNumerically(">", 0))))
	}, NodeTimeout(specTimeout))

	It("say what is yet to be read of prompts, as the picker expects it, and how fast that goes", func(ctx SpecContext) {
		in := start(fastReports)
		in.guard.measures(idleMetrics)
		begin, leave := make(chan struct{}), make(chan struct{})
		var seen atomic.Value
		in.enclave.answers(func(w http.ResponseWriter, r *http.Request) {
			seen.Store(r.Header.Clone())
			<-begin
			_, _ = io.WriteString(w, "sealed ")
			_ = http.NewResponseController(w).Flush()
			<-leave
			_, _ = io.WriteString(w, "answer")
		})
		l := in.listen(ctx, routerID, 0)
		req := in.sealed(ctx, "request")
		req.Header.Set(api.HeaderSize, "2048/1024")
		req.Header.Set(api.HeaderUncached, "409")
		told := in.sending(req)
		l.newest(ctx, HaveField("UnreadTokens", 409))
		Eventually(ctx, seen.Load).ShouldNot(BeNil())
		Expect(seen.Load()).NotTo(HaveKey(api.HeaderUncached), "the enclave has no use for it")
		other := in.sealed(ctx, "request") // nothing said of it: all of the prompt counts
		other.Header.Set(api.HeaderSize, "2048/1024")
		silent := in.sending(other)
		l.newest(ctx, HaveField("UnreadTokens", 409+2048))
		close(begin)
		l.newest(ctx, And(HaveField("UnreadTokens", 0), HaveField("Running", 2)))
		time.AfterFunc(50*time.Millisecond, func() { close(leave) })
		for _, answered := range []<-chan *http.Response{told, silent} {
			var resp *http.Response
			Eventually(ctx, answered).Should(Receive(&resp))
			Expect(readAll(resp)).To(Equal("sealed answer"))
			Expect(resp.Body.Close()).To(Succeed())
		}
		l.newest(ctx, And(HaveField("RequestDuration", BeNumerically(">", 0)), HaveField("UnreadTokens", 0)))
	}, NodeTimeout(specTimeout))

	It("follow the engine while there is work, and leave it alone while there is none", func(ctx SpecContext) {
		in := start(fastReports, func(c *parent.Config) { c.ProbeInterval = time.Hour })
		l := in.listen(ctx, routerID, 0)
		l.newest(ctx, HaveField("Running", 2))
		in.guard.measures(strings.Replace(metrics, "processing 2", "processing 4", 1))
		l.newest(ctx, HaveField("Running", 4))
		in.guard.measures(idleMetrics)
		l.newest(ctx, idle())
		asked := in.guard.asked.Load()
		for range 5 {
			l.newest(ctx, idle()) // still there
		}
		Expect(in.guard.asked.Load()).To(Equal(asked))
	}, NodeTimeout(specTimeout))

	It("count what the parent has under way when the engine does not tell, and no less than that", func(ctx SpecContext) {
		in := start(fastReports)
		in.guard.measures("no metrics")
		entered, leave := make(chan struct{}, 3), make(chan struct{})
		in.enclave.answers(waitsIn(entered, leave))
		DeferCleanup(func() { close(leave) })
		for range 3 {
			in.sending(in.sealed(ctx, "request"))
		}
		l := in.listen(ctx, routerID, 0)
		l.newest(ctx, And(HaveField("Running", 3), HaveField("Queued", 0)))
		in.guard.measures("llamacpp:requests_processing 1\nllamacpp:requests_deferred 1\n")
		l.newest(ctx, And(HaveField("Running", 2), HaveField("Queued", 1)))
	}, NodeTimeout(specTimeout))

	It("tell of requests that the instance failed to answer", func(ctx SpecContext) {
		in := start(fastReports)
		in.enclave.stop()
		l := in.listen(ctx, routerID, 0)
		Eventually(ctx, func(g Gomega) {
			in.send(in.sealed(ctx, "request"))
			var report loadreport.Report
			g.Expect(l.reports).To(Receive(&report))
			g.Expect(report.ErrorsPerSecond).To(BeNumerically(">", 0))
			g.Expect(report.RequestsPerSecond).To(BeNumerically(">=", report.ErrorsPerSecond))
		}).Should(Succeed())
	}, NodeTimeout(specTimeout))

	It("come no sooner after another than the listener asks", func(ctx SpecContext) {
		in := start(fastReports)
		l := in.listen(ctx, routerID, time.Hour)
		l.newest(ctx, Not(BeNil()))
		Consistently(ctx, l.reports, "200ms").ShouldNot(Receive())
	}, NodeTimeout(specTimeout))

	It("end with a drain, which does not wait for who listens", func(ctx SpecContext) {
		in := start(func(c *parent.Config) { c.DrainTimeout = time.Hour })
		l := in.listen(ctx, routerID, 0)
		l.newest(ctx, Not(BeNil()))
		in.stop()
		var err error
		Eventually(ctx, func() chan error {
			select {
			case <-l.reports: // those on their way
			default:
			}
			return l.ended
		}).Should(Receive(&err))
		Expect(err).To(MatchError(ContainSubstring("draining")))
		Eventually(ctx, in.done).Should(Receive(BeNil()))
	}, NodeTimeout(specTimeout))

	It("go without GPUs that cannot be read, which is logged once for each reason", func(ctx SpecContext) {
		log := gbytes.NewBuffer()
		var fault atomic.Pointer[error]
		var reads atomic.Int64
		in := start(fastReports, func(c *parent.Config) {
			c.Logger = slog.New(slog.NewTextHandler(log, nil))
			c.ReadGPU = func() (loadreport.GPU, error) {
				reads.Add(1)
				if err := fault.Load(); err != nil {
					return loadreport.GPU{}, *err
				}
				return loadreport.GPU{Utilization: 200, TemperatureC: 50}, nil
			}
		})
		l := in.listen(ctx, routerID, 0)
		l.newest(ctx, And(HaveField("GPU", loadreport.GPU{}), HaveField("Running", 2)))
		lost := errors.New("GPU is lost")
		fault.Store(&lost)
		before := reads.Load()
		Eventually(ctx, reads.Load).Should(BeNumerically(">", before+5))
		said := string(log.Contents())
		Expect(strings.Count(said, "GPU utilization is larger than 1")).To(Equal(1))
		Expect(strings.Count(said, "GPU is lost")).To(Equal(1))
	}, NodeTimeout(specTimeout))

	It("are on every answer that is relayed, forwarded ones too, and are the parent's own", func(ctx SpecContext) {
		in := start()
		in.enclave.answers(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(loadreport.Header, "TEXT cpu_utilization=0.1")
			_, _ = io.WriteString(w, "own")
		})
		own := HaveExactElements(And(HavePrefix("TEXT application_utilization=1.25,"), ContainSubstring("num_requests_waiting=3")))
		Eventually(ctx, func() []string { return in.send(in.sealed(ctx, "request")).Header.Values(loadreport.Header) }).Should(own)
		in.peer(ctx, "use1-1", fleet.Load{}, true, elsewhere)
		resp := in.eventuallyAnswered(ctx, "use1-1 got sealed", elsewhere)
		Expect(resp.Header.Values(loadreport.Header)).To(own)
	}, NodeTimeout(specTimeout))

	It("need versions that are versions", func() {
		in := surroundings()
		config := in.config()
		config.ModelVersions = map[string]string{"m": "no version"}
		_, err := parent.New(config)
		Expect(err).To(MatchError(ContainSubstring(`version "no version" of model m`)))
	})
})

var _ = Describe("A rate", func() {
	It("comes to what is so for long, whenever one looks, and to nothing in the end", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			perSecond := rapid.IntRange(1, 1000).Draw(t, "per second")
			now, start := time.Unix(1, 0), time.Unix(1, 0)
			var r parent.Rate
			count := uint64(0)
			got := r.Observe(count, now)
			if got != 0 {
				t.Fatalf("%g at first", got)
			}
			for i := 0; now.Sub(start) < 10*time.Second; i++ {
				now = now.Add(time.Duration(rapid.IntRange(50, 1500).Draw(t, fmt.Sprint("pause", i))) * time.Millisecond)
				count = uint64(now.Sub(start).Seconds() * float64(perSecond))
				if got = r.Observe(count, now); got < 0 || got > float64(perSecond)+20 {
					t.Fatalf("%g of %d", got, perSecond)
				}
			}
			if want := float64(perSecond); got < 0.9*want-20 || got > 1.1*want+20 {
				t.Fatalf("%g, want %g", got, want)
			}
			if r.Observe(count, now) != got { // no time has passed
				t.Fatal("changed without time")
			}
			if got = r.Observe(count, now.Add(time.Minute)); got != 0 {
				t.Fatalf("%g after a minute of nothing", got)
			}
		})
	})
})
