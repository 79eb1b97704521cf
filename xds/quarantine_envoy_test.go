package xds_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/envoy"
	"github.com/mrgc/mrgc/envoy/envoytest"
	"github.com/mrgc/mrgc/xds"
)

// weakCertificate is a pair that fits together and that no validation rule of
// xDS is against, but which Envoy refuses: its key is too short.
func weakCertificate() (certPEM, keyPEM []byte) {
	GinkgoHelper()
	key, err := rsa.GenerateKey(rand.Reader, 1024) //nolint:gosec // that is the point
	Expect(err).NotTo(HaveOccurred())
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "weak"}, DNSNames: []string{"weak.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	Expect(err).NotTo(HaveOccurred())
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
}

// shown is the name of the certificate that a new connection to a listener sees.
func shown(address string) string {
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}) //nolint:gosec // looks at the certificate alone
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	return strings.Join(conn.ConnectionState().PeerCertificates[0].DNSNames, ",")
}

// sdsStats counts what Envoy was sent of the tenants' certificate.
func sdsStats(e *envoytest.Envoy) string {
	GinkgoHelper()
	page, err := e.Get("/stats?filter=sds.tenant-server.update_(rejected|success)$")
	Expect(err).NotTo(HaveOccurred())
	var out []string
	for line := range strings.Lines(page) {
		out = append(out, line[strings.LastIndex(strings.TrimSpace(line), ".")+1:])
	}
	return strings.TrimSpace(strings.Join(out, ""))
}

var _ = Describe("What the real Envoy rejects", func() {
	It("is rolled back and not sent again, while it serves on, and the next good one is taken", func() {
		r := startRegion(nil, "use1", "use1").serving()
		Expect(sdsStats(r.envoy)).To(Equal("update_rejected: 0\nupdate_success: 1"))
		stop := make(chan struct{})
		answers := map[int]int{}
		var load sync.WaitGroup
		load.Go(func() {
			for {
				answers[r.sealed().status]++ // over one connection, which stays
				select {
				case <-stop:
					return
				default:
				}
			}
		})
		stopLoad := sync.OnceFunc(func() { close(stop); load.Wait() })
		DeferCleanup(stopLoad)
		secrets := func() xds.TypeStatus { return stateOf(r.server, "envoy-use1", "Secret") }
		accepted := secrets().Acked

		started := time.Now()
		Expect(r.server.SetTenantCertificate(weakCertificate())).To(Succeed())
		Eventually(secrets).Should(And(
			HaveField("State", xds.Rejected), HaveField("Reason", ContainSubstring("2048-bit")),
			HaveField("Quarantine", HaveExactElements(HaveField("Name", "tenant-server"))),
			HaveField("Acked", HaveSuffix(accepted[strings.Index(accepted, "-"):])),
		))
		AddReportEntry("from the bad certificate to the acknowledged roll-back", time.Since(started))
		address := strings.TrimPrefix(r.url, "https://")
		Expect(shown(address)).To(Equal("localhost"))
		rejected := sdsStats(r.envoy)
		Expect(rejected).To(HavePrefix("update_rejected: 1\n"))

		r.publish(r.parents[0]) // what else changes does not bring it back
		r.publish(r.parents...)
		Consistently(func() string { return sdsStats(r.envoy) }, "300ms").Should(Equal(rejected))
		Eventually(func() xds.State { return stateOf(r.server, "envoy-use1", "ClusterLoadAssignment").State }).Should(Equal(xds.Synced))
		Expect(r.server.Acked("use1")).To(BeFalse())

		Expect(r.server.SetTenantCertificate(r.ca.Server(GinkgoTB(), "rotated.example"))).To(Succeed())
		Eventually(func() string { return shown(address) }).Should(Equal("rotated.example"))
		Eventually(func() bool { return r.server.Acked("use1") }).Should(BeTrue())
		stopLoad()
		Expect(answers).To(And(HaveLen(1), HaveKeyWithValue(http.StatusOK, BeNumerically(">", 1))))
	})

	It("never reaches a second one", func() {
		r := startRegion(nil, "use1").serving()
		second := envoytest.Start(GinkgoTB(), r.ca, envoy.Config{
			NodeID: "envoy-use1-b", Region: "use1", RouterGRPC: []netip.AddrPort{r.router.grpc}, RouterHTTP: []netip.AddrPort{r.router.http},
		})
		address := second.Listener(GinkgoTB(), "tenants")
		Eventually(func() bool { return len(r.server.Envoys()) == 2 && r.server.Acked("use1") }).Should(BeTrue())
		before := sdsStats(second)

		Expect(r.server.SetTenantCertificate(weakCertificate())).To(Succeed())
		Eventually(func() string {
			return fmt.Sprint(stateOf(r.server, "envoy-use1", "Secret").State, stateOf(r.server, "envoy-use1-b", "Secret").State)
		}).
			Should(Equal("REJECTED" + "STALE"))
		Expect(stateOf(r.server, "envoy-use1-b", "Secret").Reason).To(HavePrefix("held back: Secret tenant-server: envoy envoy-use1 rejected it:"))
		Consistently(func() string { return sdsStats(second) }, "300ms").Should(Equal(before))
		Expect(shown(address)).To(Equal("localhost"))

		Expect(r.server.SetTenantCertificate(r.ca.Server(GinkgoTB(), "rotated.example"))).To(Succeed())
		for _, a := range []string{address, strings.TrimPrefix(r.url, "https://")} {
			Eventually(func() string { return shown(a) }).Should(Equal("rotated.example"))
		}
		Eventually(func() bool { return r.server.Acked("use1") }).Should(BeTrue())
	})
})
