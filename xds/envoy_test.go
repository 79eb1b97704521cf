package xds_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	accesslogdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/envoy"
	"github.com/mrgc/mrgc/envoy/envoytest"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/xds"
)

// region is one region as its tenants see it: the real Envoy, and doubles of
// everything behind it.
type region struct {
	ca      *envoytest.CA
	server  *xds.Server
	router  *routerDouble
	parents []*envoytest.Parent
	envoy   *envoytest.Envoy
	tenant  *http.Client
	url     string
	health  string
}

// startRegion runs a region with the given instances' regions; instance i
// scores scores[i], or all the same.
func startRegion(change func(*xds.Config), in ...fleet.Region) *region {
	GinkgoHelper()
	envoytest.Binary(GinkgoTB())
	r := &region{ca: envoytest.NewCA(GinkgoTB())}
	config := testConfig()
	config.MessageTimeout = 2 * time.Second // the machine may be busy with other tests
	if change != nil {
		change(&config)
	}
	r.server = startServer(config)
	r.router = startRouter(r.ca, r.server)
	for i, where := range in {
		r.parents = append(r.parents, envoytest.StartParent(GinkgoTB(), r.ca, where, fmt.Sprintf("%s-%d", where, i)))
	}
	r.publish(r.parents...)
	certPEM, keyPEM := r.ca.Server(GinkgoTB(), "localhost")
	Expect(r.server.SetTenantCertificate(certPEM, keyPEM)).To(Succeed())
	r.envoy = envoytest.Start(GinkgoTB(), r.ca, envoy.Config{
		Region: "use1", RouterGRPC: []netip.AddrPort{r.router.grpc}, RouterHTTP: []netip.AddrPort{r.router.http},
	})
	r.tenant = newTenant(r.ca)
	return r
}

// serving waits for the tenants' and the health listener.
func (r *region) serving() *region {
	GinkgoHelper()
	r.url = "https://" + r.envoy.Listener(GinkgoTB(), "tenants")
	r.health = "http://" + r.envoy.Listener(GinkgoTB(), "health") + "/healthz"
	Eventually(func() bool { return r.server.Acked("use1") }).Should(BeTrue())
	Eventually(func() int { return r.get(r.health).status }).Should(Equal(http.StatusOK))
	Eventually(r.healthy).Should(Equal(len(r.parents)))
	return r
}

// healthy counts the hosts of the model's cluster that Envoy would use.
func (r *region) healthy() int { return r.hosts("membership_healthy") }

// hosts is a count of the model's cluster.
func (r *region) hosts(stat string) int {
	stats, err := r.envoy.Get("/stats?filter=cluster." + modelCluster + "." + stat + "&format=json")
	Expect(err).NotTo(HaveOccurred())
	var page struct{ Stats []struct{ Value int } }
	Expect(json.Unmarshal([]byte(stats), &page)).To(Succeed())
	if len(page.Stats) == 0 {
		return 0
	}
	return page.Stats[0].Value
}

func (r *region) publish(parents ...*envoytest.Parent) {
	var instances []*fleet.Instance
	for _, p := range parents {
		instances = append(instances, readyInstance(p.ID, p.Region, p.Address.String()))
	}
	r.server.Update(snapshotOf(instances...))
}

func newTenant(ca *envoytest.CA) *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.RootPEM())
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost"}, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 16,
	}
	DeferCleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}
}

type answer struct {
	status int
	header http.Header
	body   string
}

func (r *region) do(req *http.Request) answer {
	resp, err := r.tenant.Do(req)
	if err != nil {
		return answer{body: err.Error()}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{body: err.Error()}
	}
	return answer{resp.StatusCode, resp.Header, string(body)}
}

func (r *region) request(method, url string, body []byte, headers ...string) answer {
	req, err := http.NewRequestWithContext(context.Background(), method, url, bytes.NewReader(body))
	if err != nil {
		return answer{body: err.Error()}
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return r.do(req)
}

func (r *region) get(url string) answer { return r.request(http.MethodGet, url, nil) }

// asked gets what tenants alone are told.
func (r *region) asked(path string, headers ...string) answer {
	return r.request(http.MethodGet, r.url+path, nil, append([]string{"Authorization", "Bearer " + token, api.HeaderTenant, "acme"}, headers...)...)
}

// sealed sends a request as mrgc connect does.
func (r *region) sealed(headers ...string) answer {
	return r.request(http.MethodPost, r.url+api.PathSealed, []byte("ciphertext"), append([]string{
		"Content-Type", api.ContentTypeSealedRequest, api.HeaderModel, model, api.HeaderTenant, "acme",
		api.HeaderRequestID, "0123456789abcdef0123456789abcdef", "Authorization", "Bearer " + token,
	}, headers...)...)
}

// zeros is a body without an end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// many sends n sealed requests, a few at a time, and counts who answered.
func (r *region) many(n, concurrency int) map[string]int {
	var mu sync.Mutex
	count := map[string]int{}
	work := make(chan struct{}, n)
	for range n {
		work <- struct{}{}
	}
	close(work)
	var workers sync.WaitGroup
	for range concurrency {
		workers.Go(func() {
			for range work {
				a := r.sealed()
				key := a.body
				if a.status != http.StatusOK {
					key = fmt.Sprint("status ", a.status)
				}
				mu.Lock()
				count[key]++
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	return count
}

// haveError matches an answer that any OpenAI client can read.
func haveError(status int, code string) OmegaMatcher {
	return WithTransform(func(a answer) string {
		var page struct {
			Error struct{ Message, Type, Code string }
		}
		if err := json.Unmarshal([]byte(a.body), &page); err != nil {
			return fmt.Sprintf("%d %q: %v", a.status, a.body, err)
		}
		if page.Error.Message == "" || page.Error.Type == "" {
			return fmt.Sprintf("%d without message or type: %s", a.status, a.body)
		}
		return fmt.Sprintf("%d %s %s", a.status, page.Error.Code, a.header.Get("Content-Type"))
	}, Equal(fmt.Sprintf("%d %s application/json", status, code)))
}

var _ = Describe("With the real Envoy", func() {
	It("answers what needs no instance by itself, in OpenAI's shape", func() {
		r := startRegion(func(c *xds.Config) { c.MaxBodyBytes = 1000 }, "use1").serving()
		post := func(path string, body []byte, headers ...string) answer {
			return r.request(http.MethodPost, r.url+path, body, headers...)
		}
		sealedType := []string{"Content-Type", api.ContentTypeSealedRequest}
		Expect(post("/v1/chat/completions", []byte("{}"), "Content-Type", "application/json")).To(haveError(400, "request_not_sealed"))
		Expect(post("/v1/sealed", nil, sealedType...)).To(haveError(400, "request_not_sealed"), "no model")
		Expect(post("/v1/sealed", nil, "Content-Type", "text/plain", api.HeaderModel, model)).To(haveError(400, "request_not_sealed"))
		Expect(post("/v1/sealed", nil, append(sealedType, api.HeaderModel, model)...)).To(haveError(401, "invalid_api_key"))
		Expect(post("/v1/sealed", nil, append(sealedType, api.HeaderModel, "gpt-99")...)).To(haveError(401, "invalid_api_key"))
		Expect(r.sealed(api.HeaderModel, "gpt-99")).To(haveError(404, "model_not_found"))
		Expect(r.get(r.url + api.PathKeys + "?model=m")).To(haveError(401, "invalid_api_key"))
		Expect(r.get(r.url + api.PathModels)).To(haveError(401, "invalid_api_key"))
		Expect(post("/v1/sealed", make([]byte, 1001), append(sealedType, api.HeaderModel, model)...)).To(haveError(413, "request_too_large"))
		Expect(r.get(r.url + "/")).To(haveError(404, "not_found"))
		Expect(r.get(r.url + "/v1/sealed")).To(haveError(404, "not_found"))
		Expect(r.get(r.url + "/v1%2Fmodels")).To(haveError(400, "bad_request"))
		Expect(r.router.picker.last()).To(BeNil(), "none of these asks the picker")

		none := r.sealed(api.HeaderModel, "tiny")
		Expect(none).To(haveError(503, "unavailable"), "a model without instances")
		Expect(none.header.Get("Retry-After")).To(Equal("1"))
		Expect(none.header).NotTo(HaveKey("Server"))

		Expect(r.asked(api.PathKeys + "?model=m").body).To(Equal("router says " + api.PathKeys + "?model=m"))
		Expect(r.asked(api.PathModels).body).To(Equal("router says " + api.PathModels))
	})

	It("takes a sealed request to where the picker says, and nobody else can", func() {
		r := startRegion(nil, "use1", "use1", "use2").serving()
		for _, p := range r.parents { // the one of another region, too
			r.router.picker.picks(p.Address.String())
			Expect(r.many(20, 4)).To(Equal(map[string]int{p.ID: 20}))
		}
		r.router.picker.picks("192.0.2.1:9," + r.parents[1].Address.String())
		Expect(r.sealed().body).To(Equal(r.parents[1].ID), "a host that is not in EDS is skipped")

		r.router.picker.picks(r.parents[0].Address.String())
		served := r.sealed("X-Gateway-Destination-Endpoint", r.parents[1].Address.String())
		Expect(served.body).To(Equal(r.parents[0].ID))
		Expect(served.header.Values(api.HeaderServed)).To(ConsistOf(r.parents[0].Address.String()))
		Expect(served.header).NotTo(HaveKey("X-Envoy-Upstream-Service-Time"))

		seen := make(chan http.Header, 1)
		r.parents[0].Handle(func(_ http.ResponseWriter, req *http.Request) { seen <- req.Header })
		r.sealed("X-Gateway-Destination-Endpoint", "x", "X-Gateway-Destination-Endpoint-Subset", "x", "X-Envoy-Retry-On", "5xx")
		var header http.Header
		Expect(seen).To(Receive(&header))
		Expect(header.Values("X-Gateway-Destination-Endpoint")).To(ConsistOf(r.parents[0].Address.String()), "the picker's own")
		Expect(header).NotTo(Or(HaveKey("X-Gateway-Destination-Endpoint-Subset"), HaveKey("X-Envoy-Retry-On")))

		attributes := r.router.picker.last().GetAttributes()["envoy.filters.http.ext_proc"].GetFields()
		Expect(attributes["xds.cluster_name"].GetStringValue()).To(Equal(modelCluster))
	})

	It("lets the picker refuse in its own words", func() {
		r := startRegion(nil, "use1").serving()
		r.router.picker.refuses(api.Errorf(http.StatusTooManyRequests, "tenant_busy", "later"))
		refused := r.sealed()
		Expect(refused).To(haveError(429, "tenant_busy"))
		Expect(refused.header.Get("Retry-After")).To(Equal("7"))
		r.router.picker.refuses(api.Errorf(http.StatusServiceUnavailable, "no_recipient", "fetch keys again"))
		Expect(r.sealed()).To(haveError(503, "no_recipient"))
	})

	It("follows the weights when the picker is silent, and does not wait for it", func() {
		r := startRegion(func(c *xds.Config) {
			scores := map[string]uint32{"use1-0": 10, "use1-1": 30, "use1-2": 60}
			c.Weight = func(in *fleet.Instance) uint32 { return scores[in.ID] }
			c.MessageTimeout = 200 * time.Millisecond
		}, "use1", "use1", "use1").serving()
		count := r.many(300, 4)
		Expect(count).To(And(
			HaveKeyWithValue("use1-0", BeNumerically("~", 30, 5)),
			HaveKeyWithValue("use1-1", BeNumerically("~", 90, 9)),
			HaveKeyWithValue("use1-2", BeNumerically("~", 180, 12)),
		))

		r.router.picker.hangs(true)
		started := time.Now()
		Expect(r.sealed().status).To(Equal(http.StatusOK))
		Expect(time.Since(started)).To(And(BeNumerically(">=", 150*time.Millisecond), BeNumerically("<", 2*time.Second)))
		r.router.picker.hangs(false)
		r.router.picker.picks(r.parents[0].Address.String())
		Eventually(func() string { return r.sealed().body }).Should(Equal("use1-0"))
	})

	It("moves a request whose instance is dead", func() {
		r := startRegion(nil, "use1", "use1").serving()
		r.parents[0].Stop()
		r.router.picker.picks(r.parents[0].Address.String() + "," + r.parents[1].Address.String())
		Expect(r.many(200, 8)).To(Equal(map[string]int{"use1-1": 200}))

		r.router.picker.picks(r.parents[0].Address.String()) // the list runs out
		Expect(r.many(200, 8)).To(Equal(map[string]int{"use1-1": 200}))
	})

	It("moves a request whose instance dies with it, but not once there is a byte of the answer", func() {
		r := startRegion(nil, "use1", "use1").serving()
		r.router.picker.picks(r.parents[0].Address.String() + "," + r.parents[1].Address.String())
		r.parents[0].Handle(func(_ http.ResponseWriter, req *http.Request) {
			_, _ = io.Copy(io.Discard, req.Body)
			panic(http.ErrAbortHandler)
		})
		Expect(r.many(40, 8)).To(Equal(map[string]int{"use1-1": 40}))

		r.parents[0].Handle(func(w http.ResponseWriter, req *http.Request) {
			_, _ = io.Copy(io.Discard, req.Body)
			w.WriteHeader(http.StatusOK)
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		})
		before := r.parents[1].Served()
		Expect(r.sealed().body).To(Or(ContainSubstring("INTERNAL_ERROR"), ContainSubstring("unexpected EOF")))
		Expect(r.parents[1].Served()).To(Equal(before))
	})

	DescribeTable("sends a request again, however large it may be", func(announced, read bool) {
		const limit = 8 << 20 // mrgc.yaml's default
		r := startRegion(func(c *xds.Config) { c.MaxBodyBytes = limit }, "use1", "use1").serving()
		r.parents[0].Handle(func(w http.ResponseWriter, req *http.Request) {
			if read {
				_, _ = io.Copy(io.Discard, req.Body)
			}
			api.Errorf(http.StatusServiceUnavailable, "instance_busy", "not now").Write(w)
		})
		r.parents[1].Handle(func(w http.ResponseWriter, req *http.Request) {
			n, _ := io.Copy(io.Discard, req.Body)
			_, _ = fmt.Fprint(w, n)
		})
		r.router.picker.picks(r.parents[0].Address.String() + "," + r.parents[1].Address.String())
		send := func(size int64) answer {
			req, err := http.NewRequest(http.MethodPost, r.url+api.PathSealed, io.LimitReader(zeros{}, size))
			Expect(err).NotTo(HaveOccurred())
			req.ContentLength = -1
			if announced {
				req.ContentLength = size
			}
			req.Header.Set("Content-Type", api.ContentTypeSealedRequest)
			req.Header.Set(api.HeaderModel, model)
			req.Header.Set("Authorization", "Bearer "+token)
			return r.do(req)
		}
		for _, size := range []int64{5 << 20, limit - 1, limit} {
			before := r.parents[0].Served()
			Eventually(func() int { // a picker that is late on a busy machine has weights choose
				Expect(send(size).body).To(Equal(fmt.Sprint(size)))
				return r.parents[0].Served()
			}).Should(BeNumerically(">", before), "the first was asked before")
		}
		switch {
		case announced:
			before := r.parents[0].Served() + r.parents[1].Served()
			Expect(send(limit + 1)).To(haveError(413, "request_too_large"))
			Expect(r.parents[0].Served()+r.parents[1].Served()).To(Equal(before), "nobody was asked")
		case read: // what nobody announced is the parent's to refuse, and is not kept
			Eventually(func() answer { return send(limit + 1) }).Should(haveError(503, "instance_busy"))
		}
	},
		Entry("up to the limit, announced, and read before it is refused", true, true),
		Entry("up to the limit, announced, and refused at once", true, false),
		Entry("up to the limit, not announced, and read before it is refused", false, true),
		Entry("up to the limit, not announced, and refused at once", false, false),
	)

	It("ends a request on which there is silence for too long, as an error", func() {
		r := startRegion(func(c *xds.Config) { c.ResponseIdleTimeout = 300 * time.Millisecond }, "use1").serving()
		r.parents[0].Handle(func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() })
		Expect(r.sealed()).To(haveError(504, "timeout"))
		r.parents[0].Handle(func(w http.ResponseWriter, req *http.Request) {
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
			<-req.Context().Done()
		})
		Expect(r.sealed().body).To(ContainSubstring("stream error"), "a cut, not an end")
	})

	It("spills to the next region, and is unwell only when nobody is left", func() {
		r := startRegion(nil, "use1", "use2", "usw2").serving()
		Expect(r.many(20, 4)).To(Equal(map[string]int{"use1-0": 20}))
		r.publish(r.parents[1:]...)
		Eventually(func() string { return r.sealed().body }).Should(Equal("use2-1"))
		Expect(r.many(20, 4)).To(Equal(map[string]int{"use2-1": 20}))

		r.parents[1].SetHealthy(false) // seen by Envoy's own checks
		Eventually(func() string { return r.sealed().body }).Should(Equal("usw2-2"))
		r.publish()
		Eventually(func() int { return r.get(r.health).status }).Should(Equal(http.StatusServiceUnavailable))
		Expect(r.sealed()).To(haveError(503, "unavailable"))
		Expect(r.get(strings.Replace(r.health, "/healthz", "/v1/models", 1)).status).To(Equal(http.StatusNotFound))
		Expect(r.request(http.MethodPost, r.health, nil).status).To(Equal(http.StatusNotFound))
	})

	It("serves on without a router, and follows it when it is back", func() {
		r := startRegion(nil, "use1", "use1").serving()
		r.router.stop()
		Eventually(r.server.Envoys).Should(BeEmpty())
		total := 0
		for id, n := range r.many(200, 8) {
			Expect(id).To(HavePrefix("use1-"))
			total += n
		}
		Expect(total).To(Equal(200))

		r.publish(r.parents[0])
		r.router.restart()
		Eventually(func() bool { return r.server.Acked("use1") }).Should(BeTrue())
		Expect(r.many(20, 4)).To(Equal(map[string]int{"use1-0": 20}))
	})

	It("asks instances for recipients while no router answers, another when one cannot tell", func() {
		r := startRegion(nil, "use1", "use1").serving()
		r.parents[0].Handle(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
		keys := func() string { return r.asked(api.PathKeys + "?model=m").body }
		Expect(keys()).To(Equal("router says " + api.PathKeys + "?model=m"))
		r.router.stopHTTP()
		for range 10 {
			Expect(keys()).To(Equal("use1-1"))
		}
		r.router.serveHTTP(listen(r.router.http.String()))
		Eventually(keys).WithTimeout(10 * time.Second).Should(HavePrefix("router says"))
	})

	It("shows tenants a new certificate without closing their connections", func() {
		r := startRegion(nil, "use1").serving()
		seen := func() string {
			conn, err := tls.Dial("tcp", strings.TrimPrefix(r.url, "https://"), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}) //nolint:gosec // looks at the certificate alone
			if err != nil {
				return err.Error()
			}
			defer conn.Close()
			state := conn.ConnectionState()
			return state.NegotiatedProtocol + " " + strings.Join(state.PeerCertificates[0].DNSNames, ",")
		}
		Expect(seen()).To(Equal("h2 localhost"))
		Expect(r.sealed().status).To(Equal(http.StatusOK))
		certPEM, keyPEM := r.ca.Server(GinkgoTB(), "rotated.example")
		Expect(r.server.SetTenantCertificate(certPEM, keyPEM)).To(Succeed())
		Eventually(seen).Should(Equal("h2 rotated.example"))
		Expect(r.sealed().status).To(Equal(http.StatusOK), "the old connection, whose name still fits")

		_, err := tls.Dial("tcp", strings.TrimPrefix(r.url, "https://"), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}) //nolint:gosec // must fail
		Expect(err).To(HaveOccurred())
	})

	It("reports each request to the routers, without what it may not know", func() {
		r := startRegion(nil, "use1").serving()
		Expect(r.sealed().status).To(Equal(http.StatusOK))
		Eventually(r.router.log.list).Should(HaveLen(1))
		entry := r.router.log.list()[0]
		Expect(entry.GetCommonProperties().GetUpstreamRemoteAddress().GetSocketAddress().GetPortValue()).To(BeEquivalentTo(r.parents[0].Address.Port()))
		Expect(entry.GetCommonProperties().GetUpstreamCluster()).To(Equal(modelCluster))
		Expect(entry.GetRequest().GetRequestHeaders()).To(And(
			HaveKeyWithValue("mrgc-model", model), HaveKeyWithValue("mrgc-tenant", "acme"), HaveKey("mrgc-request-id")))
		Expect(entry.String()).NotTo(ContainSubstring("Bearer"))
		Expect(entry.GetResponse().GetResponseCode().GetValue()).To(BeEquivalentTo(200))
	})

	It("reports where an attempt went that did not go where the picker said, as it begins", func() {
		r := startRegion(nil, "use1", "use1").serving()
		r.router.picker.picks(r.parents[0].Address.String() + "," + r.parents[1].Address.String())
		Expect(r.sealed().body).To(Equal("use1-0"))
		Eventually(r.router.log.list).Should(HaveLen(1), "nothing to say but the end")

		r.parents[0].Stop()
		release := make(chan struct{})
		r.parents[1].Handle(func(http.ResponseWriter, *http.Request) { <-release })
		ended := make(chan int, 1)
		go func() { ended <- r.sealed().status }()
		DeferCleanup(sync.OnceFunc(func() { close(release) }))
		Eventually(r.router.log.list).Should(HaveLen(2))
		moved := r.router.log.list()[1]
		Expect(moved.GetCommonProperties().GetAccessLogType()).To(Equal(accesslogdatav3.AccessLogType_UpstreamPoolReady))
		Expect(moved.GetCommonProperties().GetUpstreamRemoteAddress().GetSocketAddress().GetPortValue()).To(BeEquivalentTo(r.parents[1].Address.Port()))
		Expect(moved.GetRequest().GetRequestId()).NotTo(BeEmpty())
		Expect(moved.String()).NotTo(ContainSubstring("Bearer"))
		Expect(ended).NotTo(Receive())
	})

	It("shows what Envoy refuses, keeps the rest, and does not insist", func() {
		r := startRegion(func(c *xds.Config) { c.TenantAddress = netip.MustParseAddrPort("192.0.2.1:443") }, "use1")
		r.envoy.Listener(GinkgoTB(), "health")
		listeners := func() xds.TypeStatus { return r.server.Envoys()[0].Types[3] }
		Eventually(listeners).Should(And(HaveField("State", xds.Rejected), HaveField("Reason", ContainSubstring("192.0.2.1:443"))))
		rejections := func() string {
			stat, err := r.envoy.Get("/stats?filter=listener_manager.lds.update_rejected")
			Expect(err).NotTo(HaveOccurred())
			return strings.TrimSpace(stat)
		}
		r.publish()
		Consistently(rejections, "300ms").Should(Equal("listener_manager.lds.update_rejected: 1"))
		Expect(r.server.Acked("use1")).To(BeFalse())
	})
})
