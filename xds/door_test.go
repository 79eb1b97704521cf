package xds_test

import (
	"crypto/tls"
	"io"
	"net/http"
	"strings"
	"sync/atomic"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/identity"
)

var _ = Describe("A region's front door", func() {
	// as gives a client of another part of the cluster.
	as := func(r *region, id identity.ID, name string) *http.Client {
		config := r.ca.Source(GinkgoTB(), id).ClientTLS(func(id identity.ID) bool {
			return id == identity.ID{Region: "use1", Role: identity.RoleEnvoy}
		})
		config.ServerName = name
		transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
		DeferCleanup(transport.CloseIdleConnections)
		return &http.Client{Transport: transport}
	}
	controller := identity.ID{Region: "usw2", Role: identity.RoleController}

	It("tells controllers whether the region takes requests, and nobody else", func() {
		r := startRegion(nil, "use1").serving()
		knock := func(who *http.Client, path string) (int, string, error) {
			resp, err := who.Get(r.url + path)
			if err != nil {
				return 0, "", err
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			return resp.StatusCode, string(body), err
		}
		status, body, err := knock(as(r, controller, api.DoorName), api.PathDoor)
		Expect(err).NotTo(HaveOccurred())
		Expect(status).To(Equal(http.StatusOK))
		Expect(body).To(Equal("router says " + api.PathDoor))

		status, _, err = knock(as(r, controller, api.DoorName), api.PathModels)
		Expect(err).NotTo(HaveOccurred())
		Expect(status).To(Equal(http.StatusNotFound), "there is nothing else behind it")

		_, _, err = knock(as(r, identity.ID{Region: "use1", Role: identity.RoleRouter}, api.DoorName), api.PathDoor)
		Expect(err).To(HaveOccurred(), "a router is no controller")
		_, _, err = knock(as(r, controller, "localhost"), api.PathDoor)
		Expect(err).To(MatchError(ContainSubstring("identity")), "the tenants' door shows no part's name")
		status, _, err = knock(r.tenant, api.PathDoor)
		Expect(err).NotTo(HaveOccurred())
		Expect(status).To(Equal(http.StatusNotFound))
		anonymous := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
			ServerName: api.DoorName, InsecureSkipVerify: true, //nolint:gosec // to be turned away
		}}}
		_, _, err = knock(anonymous, api.PathDoor)
		Expect(err).To(HaveOccurred(), "nobody without a certificate")
	})

	It("is answered by an instance while there is no router", func() {
		r := startRegion(nil, "use1").serving()
		r.router.stopHTTP()
		who := as(r, controller, api.DoorName)
		Eventually(func(g Gomega) {
			resp, err := who.Get(r.url + api.PathDoor)
			g.Expect(err).NotTo(HaveOccurred())
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(resp.StatusCode).To(Equal(http.StatusOK))
			g.Expect(string(body)).NotTo(ContainSubstring("router says"))
		}).Should(Succeed())
	})

	It("is drained by Envoy's failed health check, and taken back: connections go, requests stay", func() {
		r := startRegion(nil, "use1").serving()
		var dialled atomic.Int32
		tenant := r.tenant.Transport.(*http.Transport)
		config := tenant.TLSClientConfig.Clone()
		config.VerifyConnection = func(tls.ConnectionState) error { dialled.Add(1); return nil }
		tenant.TLSClientConfig = config
		ask := func() {
			GinkgoHelper()
			Expect(r.sealed().status).To(Equal(http.StatusOK))
		}
		for range 5 {
			ask()
		}
		Expect(dialled.Load()).To(Equal(int32(1)), "one connection carries all")

		Expect(r.envoy.Post("/healthcheck/fail")).To(Succeed())
		Expect(r.get(r.health).status).To(Equal(http.StatusServiceUnavailable), "what balances in front is told")
		Eventually(func() int32 { ask(); return dialled.Load() }).Should(BeNumerically(">", 3), "connections are sent away, and all requests answered")
		_, err := r.envoy.Get("/ready")
		Expect(err).To(MatchError(ContainSubstring("503")))

		Expect(r.envoy.Post("/healthcheck/ok")).To(Succeed())
		Eventually(func() int { return r.get(r.health).status }).Should(Equal(http.StatusOK))
		ask()
		before := dialled.Load()
		for range 5 {
			ask()
		}
		Expect(dialled.Load()).To(Equal(before), "it keeps connections again")
		state, err := r.envoy.Get("/ready")
		Expect(err).NotTo(HaveOccurred())
		Expect(strings.TrimSpace(state)).To(Equal("LIVE"))
	})
})
