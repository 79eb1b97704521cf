package tenant_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/tenant"
	"github.com/mrgc/mrgc/internal/tenant/tenanttest"
)

// rewritten changes the JSON of a signed file, or of the payload in it.
func rewritten(file []byte, change func(envelope map[string]any)) []byte {
	GinkgoHelper()
	var envelope map[string]any
	Expect(json.Unmarshal(file, &envelope)).To(Succeed())
	change(envelope)
	out, err := json.Marshal(envelope)
	Expect(err).NotTo(HaveOccurred())
	return out
}

var _ = Describe("A signed list", func() {
	signer := tenanttest.NewSigner(GinkgoTB())
	rules := tenanttest.Tenant("acme", "edge", "enclave")
	rules.Models, rules.Regions = tenant.Names{}, tenant.Names{"use1"}

	It("is read as it was signed: none is not all", func() {
		l, err := tenant.Verify([]ed25519.PublicKey{tenanttest.NewSigner(GinkgoTB()).Public(), signer.Public()}, signer.Sign(GinkgoTB(), rules))
		Expect(err).NotTo(HaveOccurred())
		Expect(l.Tenants).To(Equal([]tenant.Tenant{rules}))
	})

	It("has limits, and is one that programs which know none can read where there are none", func() {
		limited := rules
		limited.Limits = tenant.Limits{RequestsPerSecond: 1, TokensPerMinute: 2, Weight: 3}
		l, err := tenant.Verify([]ed25519.PublicKey{signer.Public()}, signer.Sign(GinkgoTB(), limited))
		Expect(err).NotTo(HaveOccurred())
		Expect(l.Tenants).To(Equal([]tenant.Tenant{limited}))

		without, err := json.Marshal(rules)
		Expect(err).NotTo(HaveOccurred())
		Expect(string(without)).NotTo(Or(ContainSubstring("per_"), ContainSubstring("weight")))
		Expect(rules.Share()).To(Equal(1))
	})

	It("is DSSE: another implementation could verify it", func() {
		var envelope struct {
			PayloadType string
			Payload     []byte
			Signatures  []struct{ Sig []byte }
		}
		Expect(json.Unmarshal(signer.Sign(GinkgoTB(), rules), &envelope)).To(Succeed())
		// The example of DSSE's specification: PAE("http://example.com/HelloWorld", "hello world").
		pae := func(kind string, body []byte) []byte {
			return []byte("DSSEv1 " + lengthOf(kind) + " " + kind + " " + lengthOf(string(body)) + " " + string(body))
		}
		Expect(string(pae("http://example.com/HelloWorld", []byte("hello world")))).To(Equal("DSSEv1 29 http://example.com/HelloWorld 11 hello world"))
		Expect(ed25519.Verify(signer.Public(), pae("application/vnd.mrgc.tenants+json", envelope.Payload), envelope.Signatures[0].Sig)).To(BeTrue())
	})

	DescribeTable("is refused", func(reason string, spoil func(envelope map[string]any)) {
		file := signer.Sign(GinkgoTB(), rules)
		_, err := tenant.Verify([]ed25519.PublicKey{signer.Public()}, rewritten(file, func(map[string]any) {}))
		Expect(err).NotTo(HaveOccurred())
		_, err = tenant.Verify([]ed25519.PublicKey{signer.Public()}, rewritten(file, spoil))
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("with another payload", "no signature", func(e map[string]any) {
			payload, _ := base64.StdEncoding.DecodeString(e["payload"].(string))
			e["payload"] = base64.StdEncoding.EncodeToString(bytes.Replace(payload, []byte("use1"), []byte("use2"), 1))
		}),
		Entry("with another signature", "no signature", func(e map[string]any) {
			e["signatures"] = []map[string]any{{"sig": base64.StdEncoding.EncodeToString(make([]byte, 64))}}
		}),
		Entry("with a short signature", "no signature", func(e map[string]any) { e["signatures"] = []map[string]any{{"sig": "AAAA"}} }),
		Entry("without a signature", "no signature", func(e map[string]any) { e["signatures"] = []any{} }),
		Entry("of another type", "the type is", func(e map[string]any) { e["payloadType"] = "application/json" }),
		Entry("with more in it", "unknown field", func(e map[string]any) { e["x"] = 1 }),
	)

	It("is not one that another key has signed", func() {
		_, err := tenant.Verify([]ed25519.PublicKey{tenanttest.NewSigner(GinkgoTB()).Public()}, signer.Sign(GinkgoTB(), rules))
		Expect(err).To(MatchError(ContainSubstring("no signature is by a key that is trusted here")))
	})
})

func lengthOf(text string) string { b, _ := json.Marshal(len(text)); return string(b) }

var _ = Describe("A list", func() {
	other := tenanttest.Tenant("umbra", "other", "others")

	DescribeTable("is refused", func(reason string, change func(l *tenant.List)) {
		l := &tenant.List{Version: 1, ExpiresAt: time.Now(), Tenants: []tenant.Tenant{tenanttest.Tenant("acme", "edge", "enclave"), other}}
		_, err := tenant.Sign(ed25519.NewKeyFromSeed(make([]byte, 32)), l)
		Expect(err).NotTo(HaveOccurred())
		change(l)
		_, err = tenant.Sign(ed25519.NewKeyFromSeed(make([]byte, 32)), l)
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("without a version", "has a version", func(l *tenant.List) { l.Version = 0 }),
		Entry("without an expiry", "an expiry", func(l *tenant.List) { l.ExpiresAt = time.Time{} }),
		Entry("with a name that is none", `tenant "Acme"`, func(l *tenant.List) { l.Tenants[0].Name = "Acme" }),
		Entry("with a tenant twice", "acme is listed twice", func(l *tenant.List) { l.Tenants[1].Name = "acme" }),
		Entry("with an edge token twice", "is listed twice", func(l *tenant.List) { l.Tenants[1].EdgeTokens = l.Tenants[0].EdgeTokens }),
		Entry("with an enclave token twice", "is listed twice", func(l *tenant.List) { l.Tenants[1].EnclaveTokens = l.Tenants[0].EnclaveTokens }),
		Entry("without an edge token", "0 edge tokens", func(l *tenant.List) { l.Tenants[0].EdgeTokens = nil }),
		Entry("without an enclave token", "0 enclave tokens", func(l *tenant.List) { l.Tenants[0].EnclaveTokens = nil }),
		Entry("with a certificate's name twice", "san dns:a.example is listed twice", func(l *tenant.List) {
			l.Tenants[0].SANs, l.Tenants[1].SANs = []tenant.SAN{"dns:a.example"}, []tenant.SAN{"dns:a.example"}
		}),
		Entry("with a certificate, but without an enclave token", "0 enclave tokens", func(l *tenant.List) {
			l.Tenants[0].SANs, l.Tenants[0].EnclaveTokens = []tenant.SAN{"dns:a.example"}, nil
		}),
		Entry("with too many certificates", "9 sans", func(l *tenant.List) {
			for i := range 9 {
				l.Tenants[0].SANs = append(l.Tenants[0].SANs, tenant.SAN(fmt.Sprintf("dns:a%d.example", i)))
			}
		}),
		Entry("with a certificate's name of no kind", "sans[0]", func(l *tenant.List) { l.Tenants[0].SANs = []tenant.SAN{"a.example"} }),
		Entry("with a certificate's name in capitals", "sans[0]", func(l *tenant.List) { l.Tenants[0].SANs = []tenant.SAN{"dns:A.example"} }),
		Entry("with a certificate's name that is many", "sans[0]", func(l *tenant.List) { l.Tenants[0].SANs = []tenant.SAN{"dns:*.example"} }),
		Entry("with a certificate's URI that is none", "sans[0]", func(l *tenant.List) { l.Tenants[0].SANs = []tenant.SAN{"uri:agent"} }),
		Entry("with a certificate's URI that is two", "sans[0]", func(l *tenant.List) { l.Tenants[0].SANs = []tenant.SAN{"uri:spiffe://a/b,spiffe://c/d"} }),
		Entry("with a model without a name", "models[0]", func(l *tenant.List) { l.Tenants[0].Models = tenant.Names{""} }),
		Entry("with a region twice", "regions[1]", func(l *tenant.List) { l.Tenants[0].Regions = tenant.Names{"use1", "use1"} }),
		Entry("with requests that are too many", "requests_per_second is 1000001", func(l *tenant.List) { l.Tenants[0].RequestsPerSecond = 1_000_001 }),
		Entry("with tokens that are too few", "tokens_per_minute is -1", func(l *tenant.List) { l.Tenants[0].TokensPerMinute = -1 }),
		Entry("with a weight that is too large", "weight is 1001", func(l *tenant.List) { l.Tenants[0].Weight = 1001 }),
		Entry("with a name that is too long", "models[0]", func(l *tenant.List) { l.Tenants[0].Models = tenant.Names{strings.Repeat("m", 129)} }),
	)

	It("may name a tenant by its certificate alone", func() {
		certified := other
		certified.EdgeTokens, certified.SANs = nil, []tenant.SAN{"uri:spiffe://umbra.example/agent"}
		signer := tenanttest.NewSigner(GinkgoTB())
		l, err := tenant.Verify([]ed25519.PublicKey{signer.Public()}, signer.Sign(GinkgoTB(), certified))
		Expect(err).NotTo(HaveOccurred())
		Expect(l.Tenants[0].SANs).To(Equal(certified.SANs))
	})

	DescribeTable("is read strictly", func(text, reason string) {
		_, err := tenant.ParseList([]byte(text))
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("a rule that is not known here", `{"version":1,"expires_at":"2030-01-01T00:00:00Z","tenants":[{"name":"acme","quota":1}]}`, "unknown field"),
		Entry("more after it", `{"version":1,"expires_at":"2030-01-01T00:00:00Z","tenants":[]} {}`, "after the end"),
		Entry("nothing", ``, "EOF"),
	)
})

var _ = Describe("A keeper", func() {
	It("is not made without a key, or of one that is none", func() {
		_, err := tenant.NewKeeper()
		Expect(err).To(HaveOccurred())
		_, err = tenant.NewKeeper(ed25519.PublicKey("short"))
		Expect(err).To(HaveOccurred())
	})
})

func FuzzVerify(f *testing.F) {
	signer := tenanttest.NewSigner(f)
	good := signer.Sign(f, tenanttest.Tenant("acme", "edge", "enclave"))
	f.Add(good)
	f.Add([]byte(`{"payloadType":"application/vnd.mrgc.tenants+json","payload":"e30=","signatures":[{"sig":""}]}`))
	f.Add([]byte(`{}`))
	keys := []ed25519.PublicKey{signer.Public()}
	want, err := tenant.Verify(keys, good)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		got, err := tenant.Verify(keys, file)
		if err == nil && (got.Version != want.Version || len(got.Tenants) != 1 || got.Tenants[0].Name != "acme") {
			t.Fatal("what was not signed passes")
		}
	})
}

func FuzzParseList(f *testing.F) {
	f.Add([]byte(`{"version":1,"expires_at":"2030-01-01T00:00:00Z","tenants":[]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := tenant.ParseList(text)
		if err != nil {
			return
		}
		written, err := l.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tenant.ParseList(written); err != nil {
			t.Fatalf("what was read is not what can be written: %v", err)
		}
	})
}
