package enclave_test

import (
	"context"
	"encoding/hex"
	"net/http"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/enclave"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/internal/tenant/tenanttest"
)

// How long things last; changing them is changing what clients rely on.
const (
	keyLifetime = 24 * time.Hour
	keyTurn     = 12 * time.Hour
	documentAge = 2 * time.Minute
)

var _ = Describe("The enclave's key", func() {
	It("is offered with claims that say what it is for, and a document that attests their hash", func() {
		r := start(says(`{}`), func(c *enclave.Config) { c.ManifestSHA256 = [32]byte{9} })
		keys, documents := r.recipients()
		Expect(keys).To(HaveLen(1))
		claims := keys[0].Claims()
		Expect(claims.Model).To(Equal(model))
		Expect(claims.Region).To(Equal("use1"))
		Expect(claims.Mode).To(Equal(seal.ModeProcess))
		Expect(claims.ManifestSHA256).To(Equal([32]byte{9}))
		Expect(claims.NotBefore).To(BeTemporally("<", r.clock.Now()))
		Expect(claims.NotAfter).To(BeTemporally("==", r.clock.Now().Add(keyLifetime)))
		digest := keys[0].ClaimsDigest()
		Expect(documents[0]).To(HaveSuffix("of " + hex.EncodeToString(digest[:])))
	})

	It("keeps its document for two minutes, and then has a new one", func() {
		r := start(says(`{}`))
		before, documents := r.recipients()
		r.clock.Advance(documentAge - time.Second)
		_, same := r.recipients()
		Expect(same).To(Equal(documents))
		r.clock.Advance(time.Second)
		after, renewed := r.recipients()
		Expect(renewed).NotTo(Equal(documents))
		Expect(after[0].KeyID()).To(Equal(before[0].KeyID()))
	})

	It("gives way to a new one, and opens requests until its claims expire", func() {
		r := start(says(`{}`))
		old, _ := r.recipients()
		r.clock.Advance(keyTurn)
		both, documents := r.recipients()
		Expect(both).To(HaveLen(2))
		Expect(documents[0]).NotTo(Equal(documents[1]))
		Expect(both[0].KeyID()).NotTo(Equal(old[0].KeyID()))
		Expect(both[1].KeyID()).To(Equal(old[0].KeyID()))
		for _, key := range both {
			sealed := r.sealTo([]*seal.Recipient{key}, chat)
			Expect(open(sealed, r.send(r.post(sealed))).err).NotTo(HaveOccurred())
		}

		r.clock.Advance(keyLifetime - keyTurn + time.Second)
		late := r.send(r.post(r.sealTo(old, chat))) // before anybody asks for recipients
		Expect(late.Header.Get(api.HeaderKeyStatus)).To(Equal(api.KeyStatusStale))
		expectCode(readAll(late), http.StatusServiceUnavailable, "stale_recipients")
		left, _ := r.recipients()
		Expect(left).To(HaveLen(2), "the second key's turn is over too")
		Expect(left[1].KeyID()).To(Equal(both[0].KeyID()))
	})

	It("opens a request that is sealed to other enclaves too", func() {
		r := start(says(`{}`))
		own, _ := r.recipients()
		sealed := r.sealTo([]*seal.Recipient{r.stranger(), own[0]}, chat)
		Expect(open(sealed, r.send(r.post(sealed))).err).NotTo(HaveOccurred())
	})
})

var _ = Describe("A security module", func() {
	It("that hangs holds up no request", func(ctx SpecContext) {
		r := start(says(`{}`))
		keys, _ := r.recipients()
		r.clock.Advance(documentAge)
		release := r.module.hang()
		DeferCleanup(release)
		asked := make(chan struct{})
		go func() {
			defer GinkgoRecover()
			defer close(asked)
			_, documents := r.recipients()
			Expect(documents).To(HaveLen(1))
		}()
		Eventually(ctx, r.module.waiting.Load).Should(BeEquivalentTo(1))
		sealed := r.sealTo(keys, chat)
		Expect(open(sealed, r.send(r.post(sealed).WithContext(ctx))).err).NotTo(HaveOccurred())
		release()
		Eventually(ctx, asked).Should(BeClosed())
	}, NodeTimeout(specTimeout))

	It("that fails leaves the last document in use until it is old, then is a 503 for routers, while requests go on", func() {
		r := start(says(`{}`))
		keys, documents := r.recipients()
		r.module.failWith(errModule)
		r.clock.Advance(2*documentAge - time.Second)
		_, unrenewed := r.recipients()
		Expect(unrenewed).To(Equal(documents))
		r.clock.Advance(time.Second)
		resp, err := r.client.Get(r.url + "/recipients")
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(resp.Body.Close)
		Expect(resp.StatusCode).To(Equal(http.StatusServiceUnavailable))
		expectCode(readAll(resp), resp.StatusCode, "attestation_failed")
		Expect(r.logs.String()).To(ContainSubstring(errModule.Error()))
		sealed := r.sealTo(keys, chat)
		Expect(open(sealed, r.send(r.post(sealed))).err).NotTo(HaveOccurred())

		r.module.failWith(nil)
		again, _ := r.recipients()
		Expect(again[0].KeyID()).To(Equal(keys[0].KeyID()))
	})
})

var _ = Describe("An enclave's clock", func() {
	It("that is not its security module's has it offer no key, until it is", func() {
		r := start(says(`{}`))
		keys, _ := r.recipients()
		for _, off := range []time.Duration{time.Minute, -time.Minute} {
			r.module.setAhead(off)
			r.clock.Advance(documentAge)
			_, documents := r.recipients()
			Expect(documents[0]).NotTo(BeEmpty(), "so far they may differ")
			r.module.setAhead(off + off/time.Minute*time.Second)
			r.clock.Advance(documentAge)
			resp, err := r.client.Get(r.url + "/recipients")
			Expect(err).NotTo(HaveOccurred())
			expectCode(readAll(resp), resp.StatusCode, "attestation_failed")
			Expect(resp.Body.Close()).To(Succeed())
			Expect(r.logs.String()).To(ContainSubstring("1m1s off that of the security module"))
		}
		r.module.setAhead(0)
		again, _ := r.recipients()
		Expect(again[0].KeyID()).To(Equal(keys[0].KeyID()))
	})
})

var _ = Describe("An enclave", func() {
	DescribeTable("does not start",
		func(because string, change func(*enclave.Config)) {
			config := enclave.Config{
				Model: model, Region: "use1", Mode: seal.ModeProcess, NSM: &fakeModule{},
				DocumentTime: func([]byte) (time.Time, error) { return time.Now(), nil },
				Engine:       http.DefaultTransport,
				Tenants:      tenanttest.Keeper(GinkgoTB(), tenanttest.Tenant(tenant, "edge", "token")),
			}
			_, err := enclave.New(context.Background(), config)
			Expect(err).NotTo(HaveOccurred())
			change(&config)
			_, err = enclave.New(context.Background(), config)
			Expect(err).To(MatchError(ContainSubstring(because)))
		},
		Entry("without a security module", "no security module", func(c *enclave.Config) { c.NSM = nil }),
		Entry("with one that fails", errModule.Error(), func(c *enclave.Config) {
			module := &fakeModule{}
			module.failWith(errModule)
			c.NSM = module
		}),
		Entry("with one whose clock is another", "1m1s off that of the security module", func(c *enclave.Config) {
			c.DocumentTime = func([]byte) (time.Time, error) { return time.Now().Add(-61 * time.Second), nil }
		}),
		Entry("with one whose documents are none", "not a COSE_Sign1 message", func(c *enclave.Config) { c.DocumentTime = nil }),
		Entry("without an engine", "no way to reach the engine", func(c *enclave.Config) { c.Engine = nil }),
		Entry("with a negative limit", "negative", func(c *enclave.Config) { c.ConcurrentRequests = -1 }),
		Entry("without a key for tenants", "no key that verifies tenants", func(c *enclave.Config) { c.Tenants = nil }),
		Entry("without a model", "model or region is empty", func(c *enclave.Config) { c.Model = "" }),
		Entry("without a region", "model or region is empty", func(c *enclave.Config) { c.Region = "" }),
		Entry("in a mode that is not known", "mode is not known", func(c *enclave.Config) { c.Mode = "safe" }),
	)

	It("says that it lives, and has no other paths", func() {
		r := start(says(`{}`))
		for path, want := range map[string]int{
			"/healthz": http.StatusOK, api.PathSealed: http.StatusMethodNotAllowed, "/debug/pprof/": http.StatusNotFound,
		} {
			resp, err := r.client.Get(r.url + path)
			Expect(err).NotTo(HaveOccurred())
			Expect(resp.Body.Close()).To(Succeed())
			Expect(resp.StatusCode).To(Equal(want), path)
		}
	})
})
