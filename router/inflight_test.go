package router_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/envoy"
	"github.com/mrgc/mrgc/envoy/envoytest"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
)

// besideEnvoy is a router with a real Envoy before it and two instances behind,
// which answer as a test has them answer.
type besideEnvoy struct {
	*running
	envoys  *envoytest.CA
	parents []*envoytest.Parent
	tenant  *http.Client
	url     string
}

// newRouterBesideEnvoy prepares a router that an Envoy of an authority admits.
func newRouterBesideEnvoy(ca *envoytest.CA) *running {
	GinkgoHelper()
	r := newRouter()
	r.config.Identity = ca.Source(GinkgoTB(), routerID)
	r.config.XDS.TenantAddress = netip.MustParseAddrPort("127.0.0.1:0")
	r.config.MessageTimeout = 2 * time.Second // the machine may be busy with other tests
	r.config.XDS.HealthAddress = netip.MustParseAddrPort("127.0.0.1:0")
	r.writeCertificate(ca.Server(GinkgoTB(), "localhost"))
	return r
}

func startBesideEnvoy() *besideEnvoy {
	GinkgoHelper()
	envoytest.Binary(GinkgoTB())
	r := &besideEnvoy{envoys: envoytest.NewCA(GinkgoTB())}
	r.running = newRouterBesideEnvoy(r.envoys).start()
	instances := r.startParents()
	Eventually(r.store.snapshots).Should(BeSent(fleet.NewSnapshot(time.Now(), instances)))
	r.startEnvoy([]string{r.grpc}, []string{r.http})
	return r
}

// startParents starts two instances' parents.
func (r *besideEnvoy) startParents() (instances []*fleet.Instance) {
	GinkgoHelper()
	for i := range 2 {
		p := envoytest.StartParent(GinkgoTB(), r.envoys, "use1", fmt.Sprintf("use1-%d", i))
		r.parents = append(r.parents, p)
		instances = append(instances, &fleet.Instance{
			ID: p.ID, Region: p.Region, Address: p.Address.String(), Models: []string{model}, KeyIDs: []string{kidOf(p.ID)},
			Health: fleet.Health{Enclave: true, Engine: true}, Load: fleet.Load{Slots: 4}, HeartbeatAt: time.Now(),
		})
	}
	return instances
}

// startEnvoy starts an Envoy that prefers the first of the routers' addresses,
// and waits until it serves.
func (r *besideEnvoy) startEnvoy(grpcAt, httpAt []string) {
	GinkgoHelper()
	config := envoy.Config{Region: "use1"}
	for i := range grpcAt {
		config.RouterGRPC = append(config.RouterGRPC, netip.MustParseAddrPort(grpcAt[i]))
		config.RouterHTTP = append(config.RouterHTTP, netip.MustParseAddrPort(httpAt[i]))
	}
	e := envoytest.Start(GinkgoTB(), r.envoys, config)
	r.url = "https://" + e.Listener(GinkgoTB(), "tenants")
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(r.envoys.RootPEM())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost"}, ForceAttemptHTTP2: true}
	DeferCleanup(transport.CloseIdleConnections)
	r.tenant = &http.Client{Transport: transport}
	Eventually(func() error { return r.ask(context.Background()) }).WithTimeout(10 * time.Second).Should(Succeed())
}

// ask sends a sealed request, to either instance, and reads the answer.
func (r *besideEnvoy) ask(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url+api.PathSealed, bytes.NewReader(make([]byte, 100)))
	if err != nil {
		return err
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id)
	for name, value := range map[string]string{
		"Content-Type": api.ContentTypeSealedRequest, "Authorization": "Bearer " + string(r.key.EdgeToken()),
		api.HeaderModel: model, api.HeaderTenant: r.key.Tenant(), api.HeaderRequestID: hex.EncodeToString(id),
		api.HeaderRecipients: kidOf("use1-0") + "," + kidOf("use1-1"),
	} {
		req.Header.Set(name, value)
	}
	resp, err := r.tenant.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d: %s %v", resp.StatusCode, body, resp.Header)
	}
	return nil
}

// inFlight is what the router's metrics say, by instance.
func (r *besideEnvoy) inFlight() map[string]string {
	counts := map[string]string{}
	for _, match := range regexp.MustCompile(`mrgc_in_flight\{.*?instance="(.*?)".*?\} (\d+)`).FindAllStringSubmatch(r.adminPage("/metrics").text, -1) {
		counts[match[1]] = match[2]
	}
	return counts
}

var _ = Describe("The picker's answer", func() {
	It("is timed by the real Envoy, which tells the router", func(ctx SpecContext) {
		r := startBesideEnvoy()
		waits := func() string {
			return regexp.MustCompile(`mrgc_pick_wait_seconds_count.* [1-9].*`).FindString(r.adminPage("/metrics").text)
		}
		var before string
		Eventually(waits).WithPolling(200 * time.Millisecond).Should(Satisfy(func(now string) bool { // nothing is on its way any more
			settled := now != "" && now == before
			before = now
			return settled
		}))
		Expect(r.ask(ctx)).To(Succeed())
		Eventually(waits).ShouldNot(Equal(before))
	})
})

var _ = Describe("Requests in flight through the real Envoy", func() {
	It("are counted where a retry took them", func(ctx SpecContext) {
		r := startBesideEnvoy()
		var hung atomic.Pointer[string]
		release := make(chan struct{})
		DeferCleanup(sync.OnceFunc(func() { close(release) }))
		var refused atomic.Bool
		for _, p := range r.parents {
			p.Handle(func(w http.ResponseWriter, _ *http.Request) {
				if refused.CompareAndSwap(false, true) { // whoever comes first
					w.WriteHeader(http.StatusServiceUnavailable)
					return
				}
				hung.Store(&p.ID)
				<-release
			})
		}
		Eventually(r.inFlight).Should(Equal(map[string]string{"use1-0": "0", "use1-1": "0"}))
		ended := make(chan error, 1)
		go func() { ended <- r.ask(ctx) }()
		Eventually(hung.Load).ShouldNot(BeNil())
		want := map[string]string{"use1-0": "0", "use1-1": "0"}
		want[*hung.Load()] = "1"
		Eventually(r.inFlight).Should(Equal(want))
		Expect(ended).NotTo(Receive())
	})

	It("end at zero, however requests end", func(ctx SpecContext) {
		requests := 4_000
		if os.Getenv("MRGC_TEST_LONG") != "" {
			requests = 100_000
		}
		r := startBesideEnvoy()
		for _, p := range r.parents {
			p.Handle(func(w http.ResponseWriter, req *http.Request) {
				_, _ = io.Copy(io.Discard, req.Body)
				switch mathrand.IntN(10) {
				case 0:
					w.WriteHeader(http.StatusServiceUnavailable) // goes to the other
				case 1:
					panic(http.ErrAbortHandler) // the same, or fails
				case 2:
					select { // thinks, for as long as anyone waits
					case <-time.After(time.Duration(mathrand.IntN(20)) * time.Millisecond):
					case <-req.Context().Done():
					}
				case 3:
					_, _ = io.WriteString(w, "a piece")
					_ = http.NewResponseController(w).Flush()
					panic(http.ErrAbortHandler)
				}
			})
		}
		var answered, aborted, failed atomic.Int64
		work := make(chan struct{}, requests)
		for range requests {
			work <- struct{}{}
		}
		close(work)
		var workers sync.WaitGroup
		for range 32 {
			workers.Go(func() {
				for range work {
					ctx, cancel := context.WithCancel(ctx)
					if mathrand.IntN(3) == 0 {
						time.AfterFunc(time.Duration(mathrand.IntN(10_000))*time.Microsecond, cancel)
					}
					switch err := r.ask(ctx); {
					case err == nil:
						answered.Add(1)
					case ctx.Err() != nil:
						aborted.Add(1)
					default:
						failed.Add(1)
					}
					cancel()
				}
			})
		}
		workers.Wait()
		GinkgoWriter.Printf("%d requests: %d answered, %d aborted, %d failed\n", requests, answered.Load(), aborted.Load(), failed.Load())
		Expect(answered.Load()).To(BeNumerically(">", requests/3))
		Expect(aborted.Load()).To(BeNumerically(">", requests/20))
		Expect(failed.Load()).To(BeNumerically(">", requests/20))
		Eventually(r.inFlight).WithTimeout(5 * time.Second).Should(Equal(map[string]string{"use1-0": "0", "use1-1": "0"}))
		Expect(strings.Count(r.adminPage("/metrics").text, "\nmrgc_in_flight{")).To(Equal(2))
	})
})
