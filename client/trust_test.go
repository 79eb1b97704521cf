package client_test

import (
	"bytes"
	"maps"
	"net/http"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/client"
	"github.com/mrgc/mrgc/enclave"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/standin/softnsm"
)

// refuses wants the recipients refused for a reason, and nothing sealed sent.
func (e *edge) refuses(resp *http.Response, reason string) {
	GinkgoHelper()
	refused := refusal(resp)
	Expect(refused.Status).To(Equal(http.StatusBadGateway))
	Expect(refused.Code).To(Equal("no_trusted_recipient"))
	Expect(refused.Message).To(ContainSubstring(reason))
	Expect(e.requests(api.PathSealed)).To(BeEmpty())
}

var _ = Describe("Trust", func() {
	var (
		c *cluster
		e *edge
	)
	BeforeEach(func() {
		c = newCluster()
		e = c.startEdge()
	})

	DescribeTable("is the policy's to give", func(ctx SpecContext, change func(*client.Policy), reason string) {
		config := c.config(e)
		change(&config.Policy)
		e.refuses(c.tenant(config).ask(ctx), reason)
	},
		Entry("an untrusted release", func(p *client.Policy) {
			other := p.Releases[0]
			other.PCRs = attest.PCRs{0: attest.ExtendedPCR([]byte("another")), 1: other.PCRs[1], 2: other.PCRs[2]}
			p.Releases = []attest.Release{other}
		}, "match no trusted release"),
		Entry("a release that is too old", func(p *client.Policy) { p.MinVersion = 4 }, "below the minimum version 4"),
		Entry("another root", func(p *client.Policy) {
			root, err := softnsm.NewRoot(time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC))
			Expect(err).NotTo(HaveOccurred())
			p.DevelopmentRoot = root.Certificate()
		}, "not one that the policy pins"),
		Entry("a process, in production", func(p *client.Policy) { p.DevelopmentRoot = nil }, `mode "process" is not accepted`),
		Entry("a development root, in production", func(p *client.Policy) {
			p.DevelopmentRoot, p.Modes = nil, []string{seal.ModeProcess}
		}, softnsm.RootName),
		Entry("a mode that is not wanted", func(p *client.Policy) { p.Modes = []string{seal.ModeNitro, seal.ModeNitroAttestedHost} }, `mode "process" is not accepted, but nitro, nitro+attested-host`),
		Entry("a region that is not allowed", func(p *client.Policy) { p.Regions = []string{"usw2", "use2"} }, `region "use1" is not accepted`),
	)

	DescribeTable("is not given to an enclave", func(ctx SpecContext, change func(*enclave.Config), reason string) {
		c.replace(c.newEnclave(change))
		e.refuses(c.tenant(c.config(e)).ask(ctx), reason)
	},
		Entry("that claims another region than its module's", func(c *enclave.Config) { c.Region = "use2" }, `certificate chain names region "us-east-1"`),
		Entry("in a region that is not known", func(c *enclave.Config) { c.Region = "mars1" }, `region "mars1" is not known`),
		Entry("that serves another model", func(c *enclave.Config) { c.Model = "large" }, `serves "large"`),
	)

	DescribeTable("in a mode is given to those alone that claim it", func(ctx SpecContext, demanded string) {
		for _, claimed := range seal.Modes() {
			c.replace(c.newEnclave(func(c *enclave.Config) { c.Mode = claimed }))
			beside := c.startEdge()
			config := c.config(beside)
			config.Policy.Modes = []string{demanded}
			resp := c.tenant(config).ask(ctx)
			if claimed == demanded {
				Expect(resp.StatusCode).To(Equal(http.StatusOK))
				continue
			}
			beside.refuses(resp, `mode "`+claimed+`" is not accepted, but `+demanded)
		}
	},
		Entry(nil, seal.ModeProcess), Entry(nil, seal.ModeNitro), Entry(nil, seal.ModeNitroAttestedHost), Entry(nil, seal.ModeNitroAttestedHostCC),
	)

	DescribeTable("is not given after", func(ctx SpecContext, age time.Duration, reason string) {
		offered := c.recipients()
		e.on(api.PathKeys, func(w http.ResponseWriter, _ *http.Request) { writeRecipients(w, offered) })
		t := c.tenant(c.config(e))
		c.clock.Advance(age)
		e.refuses(t.ask(ctx), reason)
	},
		Entry("a document has aged", 5*time.Minute+time.Second, "old, more than 5m0s"),
		Entry("claims have expired", 24*time.Hour+time.Second, "claims are not valid"),
		Entry("claims could expire before the request", 24*time.Hour-30*time.Second, "claims are not valid"),
	)

	DescribeTable("is not given to what was changed on the way", func(ctx SpecContext, change func([]api.Recipient) []api.Recipient, reason string) {
		e.on(api.PathKeys, func(w http.ResponseWriter, _ *http.Request) { writeRecipients(w, change(c.recipients())) })
		e.refuses(c.tenant(c.config(e)).ask(ctx), reason)
	},
		Entry("another's claims under a good document", func(offered []api.Recipient) []api.Recipient {
			offered[0].Claims = recipientsOf(c.newEnclave())[0].Claims
			return offered
		}, "user_data is not what was expected"),
		Entry("changed claims", func(offered []api.Recipient) []api.Recipient {
			offered[0].Claims = bytes.Replace(offered[0].Claims, []byte(seal.ModeProcess), []byte("procesz"), 1)
			return offered
		}, "mode is not known"),
		Entry("a changed document", func(offered []api.Recipient) []api.Recipient {
			offered[0].Attestation = bytes.Clone(offered[0].Attestation)
			offered[0].Attestation[len(offered[0].Attestation)-1] ^= 1
			return offered
		}, "attestation document"),
		Entry("no document", func(offered []api.Recipient) []api.Recipient {
			offered[0].Attestation = nil
			return offered
		}, "attestation document"),
		Entry("an empty list", func([]api.Recipient) []api.Recipient { return nil }, "none of the cluster's 0 enclaves"),
	)

	It("is not given to a list with a recipient twice", func(ctx SpecContext) {
		e.on(api.PathKeys, func(w http.ResponseWriter, _ *http.Request) {
			writeRecipients(w, append(c.recipients(), c.recipients()...))
		})
		refused := refusal(c.tenant(c.config(e)).ask(ctx))
		Expect(refused.Status).To(Equal(http.StatusBadGateway))
		Expect(refused.Code).To(Equal("invalid_recipients"))
		Expect(e.requests(api.PathSealed)).To(BeEmpty())
	})

	It("is given to the others when one is refused", func(ctx SpecContext) {
		good := c.present()[0]
		c.replace(c.newEnclave(func(c *enclave.Config) { c.Region = "use2" }), good)
		expectReply(c.tenant(c.config(e)).ask(ctx))
		Expect(e.requests(api.PathSealed)[0].header.Get(api.HeaderRecipients)).To(Equal(keyID(recipientsOf(good)[0]).String()))
	})

	DescribeTable("is given to so many at once", func(ctx SpecContext, wanted, sealedTo int) {
		c.replace(append(c.present(), c.newEnclave(), c.newEnclave(), c.newEnclave(), c.newEnclave())...)
		config := c.config(e)
		config.Recipients = wanted
		expectReply(c.tenant(config).ask(ctx))
		var first []string
		for _, offered := range c.recipients()[:sealedTo] {
			first = append(first, keyID(offered).String())
		}
		Expect(e.requests(api.PathSealed)[0].header.Get(api.HeaderRecipients)).To(Equal(strings.Join(first, ",")))
	},
		Entry("by default", 0, 3), Entry("one", 1, 1), Entry("as many as there can be", 4, 4),
	)

	It("changes with the releases, for recipients that were trusted, too", func(ctx SpecContext) {
		release, err := measured()
		Expect(err).NotTo(HaveOccurred())
		other, older := release, release
		other.PCRs = attest.PCRs{0: attest.ExtendedPCR([]byte("another")), 1: other.PCRs[1], 2: other.PCRs[2]}
		older.Version = 2
		config := c.config(e)
		config.Policy.MinVersion = 3
		t := c.tenant(config)
		refused := func(reason string) {
			GinkgoHelper()
			before := len(e.requests(api.PathSealed))
			refused := refusal(t.ask(ctx))
			Expect(refused.Code).To(Equal("no_trusted_recipient"))
			Expect(refused.Message).To(ContainSubstring(reason))
			Expect(e.requests(api.PathSealed)).To(HaveLen(before), "nothing was sealed to it")
		}
		expectReply(t.ask(ctx))

		Expect(t.sealing.SetReleases([]attest.Release{other}, 0)).To(Succeed())
		refused("match no trusted release")
		Expect(t.sealing.SetReleases([]attest.Release{other, release}, 0)).To(Succeed())
		expectReply(t.ask(ctx))
		Expect(t.sealing.SetReleases([]attest.Release{release}, 4)).To(Succeed())
		refused("below the minimum version 4")
		Expect(t.sealing.SetReleases([]attest.Release{older}, 0)).To(Succeed())
		refused("below the minimum version 3") // which the policy itself has
		Expect(t.sealing.SetReleases([]attest.Release{release}, 0)).To(Succeed())
		Expect(t.sealing.SetReleases(nil, 0)).To(MatchError(ContainSubstring("no trusted releases")))
		expectReply(t.ask(ctx))
	})

	It("is not given to a release that was recalled, though its enclaves are known, and at home in the conversation", func(ctx SpecContext) {
		release, err := measured()
		Expect(err).NotTo(HaveOccurred())
		of := func(version uint64, role string) attest.Release {
			release := release
			release.Version, release.PCRs = version, maps.Clone(release.PCRs)
			release.PCRs[3] = attest.ExtendedPCR([]byte(role))
			return release
		}
		old, next := of(3, development), of(4, "next")
		config := c.config(e)
		config.Policy.Releases = []attest.Release{old, next}
		t := c.tenant(config)
		recalled := c.present()
		expectReply(t.ask(ctx))

		module := c.serveNSM("next")
		fresh := c.newEnclave(func(c *enclave.Config) { c.NSM = module })
		c.replace(append(recalled, fresh)...)
		Expect(t.sealing.SetReleases([]attest.Release{next}, 0)).To(Succeed())
		expectReply(t.ask(ctx))
		sealed := e.requests(api.PathSealed)
		Expect(sealed).To(HaveLen(2))
		Expect(sealed[0].header.Get(api.HeaderRecipients)).To(Equal(keyID(recipientsOf(recalled[0])[0]).String()))
		Expect(sealed[1].header.Get(api.HeaderRecipients)).To(Equal(keyID(recipientsOf(fresh)[0]).String()))
	})

	It("accepts each mode that the policy names", func(ctx SpecContext) {
		config := c.config(e)
		config.Policy.Modes = []string{seal.ModeNitro, seal.ModeProcess}
		config.Policy.Regions = []string{"use1"}
		expectReply(c.tenant(config).ask(ctx))
	})
})
