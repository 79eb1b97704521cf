package e2e_test

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fxamacker/cbor/v2"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/client"
	"github.com/mrgc/mrgc/internal/api"
)

// variants are the ways to spoil one place within a CBOR value, each a whole value:
// a member left out, one that nobody knows, and each leaf another one.
func variants(value any) (all []variant) {
	switch v := value.(type) {
	case map[any]any:
		with := func(key, member any) map[any]any {
			changed := maps.Clone(v)
			changed[key] = member
			return changed
		}
		for key, member := range v {
			without := maps.Clone(v)
			delete(without, key)
			all = append(all, variant{fmt.Sprintf("%v left out", key), without}, variant{fmt.Sprintf("%v null", key), with(key, nil)})
			for _, inner := range variants(member) {
				all = append(all, variant{fmt.Sprintf("%v: %s", key, inner.what), with(key, inner.value)})
			}
		}
		all = append(all, variant{"one more member", with(uint64(99), uint64(1))})
	case []any:
		for i, element := range v {
			all = append(all, variant{fmt.Sprintf("%d left out", i), slices.Delete(slices.Clone(v), i, i+1)})
			for _, inner := range variants(element) {
				changed := slices.Clone(v)
				changed[i] = inner.value
				all = append(all, variant{fmt.Sprintf("%d: %s", i, inner.what), changed})
			}
		}
		all = append(all, variant{"one more element", append(slices.Clone(v), []byte{1})})
	case cbor.Tag:
		for _, inner := range variants(v.Content) {
			all = append(all, variant{inner.what, cbor.Tag{Number: v.Number, Content: inner.value}})
		}
		all = append(all, variant{"another tag", cbor.Tag{Number: v.Number + 1, Content: v.Content}})
	case []byte:
		all = append(all, variant{"empty", []byte{}}, variant{"longer", append(bytes.Clone(v), 0)})
		for _, i := range []int{0, len(v) / 2, len(v) - 1} {
			if i >= 0 && i < len(v) {
				changed := bytes.Clone(v)
				changed[i] ^= 1
				all = append(all, variant{fmt.Sprintf("byte %d", i), changed})
			}
		}
		if len(v) > 0 {
			all = append(all, variant{"cut", v[:len(v)-1]}, variant{"zeros, and one", append(make([]byte, len(v)-1), 1)})
		}
	case string:
		all = append(all, variant{"empty", ""}, variant{"longer", v + "x"}, variant{"another", "x" + v[min(1, len(v)):]})
	case uint64:
		all = append(all, variant{"+1", v + 1}, variant{"-1", int64(v) - 1}, variant{"a text", fmt.Sprint(v)})
	case int64:
		all = append(all, variant{"+1", v + 1}, variant{"-1", v - 1})
	}
	return all
}

type variant struct {
	what  string
	value any
}

// offers are a recipient, and what it can be spoiled into, by what was done.
func offers(good api.Recipient) map[string]api.Recipient {
	GinkgoHelper()
	mode, err := cbor.CoreDetEncOptions().EncMode()
	Expect(err).NotTo(HaveOccurred())
	encode := func(value any) []byte {
		GinkgoHelper()
		encoded, err := mode.Marshal(value)
		Expect(err).NotTo(HaveOccurred())
		return encoded
	}
	all := map[string]api.Recipient{}
	add := func(what string, r api.Recipient) {
		if !bytes.Equal(r.Claims, good.Claims) || !bytes.Equal(r.Attestation, good.Attestation) {
			all[what] = r
		}
	}

	var claims any
	Expect(cbor.Unmarshal(good.Claims, &claims)).To(Succeed())
	Expect(encode(claims)).To(Equal(good.Claims), "what is spoiled is encoded as it was")
	for _, v := range variants(claims) {
		add("claims: "+v.what, api.Recipient{Claims: encode(v.value), Attestation: good.Attestation})
	}

	var document any
	Expect(cbor.Unmarshal(good.Attestation, &document)).To(Succeed())
	for _, v := range variants(document) {
		add("document: "+v.what, api.Recipient{Claims: good.Claims, Attestation: encode(v.value)})
	}
	array, ok := document.([]any)
	if tagged, is := document.(cbor.Tag); is {
		array, ok = tagged.Content.([]any)
	}
	Expect(ok).To(BeTrue())
	Expect(array).To(HaveLen(4), "COSE_Sign1")
	for i, name := range map[int]string{0: "protected header", 2: "payload"} {
		var inner any
		Expect(cbor.Unmarshal(array[i].([]byte), &inner)).To(Succeed())
		for _, v := range variants(inner) {
			changed := slices.Clone(array)
			changed[i] = encode(v.value)
			add(name+": "+v.what, api.Recipient{Claims: good.Claims, Attestation: encode(changed)})
		}
	}
	return all
}

var _ = Describe("Somebody who forges recipients", Label("threats"), func() {
	It("has no request sealed to one whose claims or document differ in any field", func(ctx SpecContext) {
		engine := newToldEngine()
		c := startCluster("--regions", "use1", "--instances", "1", "--engine-url", engine.server.URL, "--model-name", "told", "--ask=false")
		var offered api.Recipients
		Eventually(ctx, func() int {
			Expect(json.Unmarshal([]byte(c.keys(ctx)), &offered)).To(Succeed())
			return len(offered.Recipients)
		}, "20s").Should(Equal(1))

		var offer atomic.Pointer[api.Recipient]
		var asked, sealed atomic.Int64
		front := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == api.PathKeys {
				asked.Add(1)
				_ = json.NewEncoder(w).Encode(api.Recipients{Recipients: []api.Recipient{*offer.Load()}})
				return
			}
			sealed.Add(1)
			api.Errorf(http.StatusBadRequest, "cannot_open", "this front door opens nothing").Write(w)
		}))
		DeferCleanup(front.Close)
		config := client.Config{Endpoints: []string{front.URL}, RootCAs: x509.NewCertPool(), Policy: c.policy()}
		config.RootCAs.AddCert(front.Certificate())
		ask := func(r api.Recipient) {
			GinkgoHelper()
			offer.Store(&r)
			tenant, err := client.New(config)
			Expect(err).NotTo(HaveOccurred())
			defer tenant.CloseIdleConnections()
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://mrgc/v1/chat/completions", strings.NewReader(`{"model":"told","messages":[]}`))
			Expect(err).NotTo(HaveOccurred())
			req.Header.Set("Authorization", "Bearer "+c.env()["OPENAI_API_KEY"])
			resp, err := tenant.RoundTrip(req)
			Expect(err).NotTo(HaveOccurred())
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			Expect(err).NotTo(HaveOccurred())
			Expect(resp.StatusCode).To(BeNumerically(">=", 400), "%s", body)
		}

		good := offered.Recipients[0]
		all := offers(good)
		Expect(len(all)).To(BeNumerically(">", 150))
		for what, bad := range all {
			ask(bad)
			Expect(sealed.Load()).To(BeZero(), "a request was sealed to a recipient that was spoiled: %s", what)
		}
		Expect(asked.Load()).To(BeNumerically(">=", len(all)))
		ask(good)
		Expect(sealed.Load()).To(BeNumerically(">=", 1), "to the one that was not, it is")
		AddReportEntry("recipients", fmt.Sprintf("%d recipients that differ in one field: nothing was sealed to any", len(all)))
	}, NodeTimeout(2*time.Minute))
})

// policy is what a tenant of this cluster demands.
func (c *cluster) policy() (p client.Policy) {
	GinkgoHelper()
	content, err := os.ReadFile(c.env()["MRGC_RELEASES"])
	Expect(err).NotTo(HaveOccurred())
	p.Releases, err = client.ParseReleases(content)
	Expect(err).NotTo(HaveOccurred())
	content, err = os.ReadFile(c.env()["MRGC_DEVELOPMENT_ROOT"])
	Expect(err).NotTo(HaveOccurred())
	block, _ := pem.Decode(content)
	Expect(block).NotTo(BeNil())
	p.DevelopmentRoot, err = x509.ParseCertificate(block.Bytes)
	Expect(err).NotTo(HaveOccurred())
	return p
}
