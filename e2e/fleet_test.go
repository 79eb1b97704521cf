package e2e_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/audit"
	"github.com/mrgc/mrgc/internal/fleet/dynamodb/dynamodblocal"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/standin/softkms"
)

// fleetKey is the fleet's key that the region offers; nil: none yet.
func (c *cluster) fleetKey(ctx context.Context) *seal.Recipient {
	GinkgoHelper()
	var offered api.Recipients
	Expect(json.Unmarshal([]byte(c.keys(ctx)), &offered)).To(Succeed())
	for _, o := range offered.Recipients {
		if recipient, err := seal.ParseRecipient(o.Claims); err == nil && recipient.Claims().Type == seal.TypeFleet {
			return recipient
		}
	}
	return nil
}

// seedEvents are the calls of KMS for a fleet's seeds.
func (c *cluster) seedEvents() []softkms.Event {
	GinkgoHelper()
	return slices.DeleteFunc(c.kmsEvents(), func(e softkms.Event) bool { return e.Context["mrgc:fleet"] == "" })
}

var _ = Describe("A fleet's key", func() {
	It("opens at every instance, runs an envelope once, and is the same after all enclaves have gone", func(ctx SpecContext) {
		if missing := dynamodblocal.Missing(); missing != "" {
			Skip(missing)
		}
		table, err := dynamodblocal.Start(ctx, dynamodblocal.Config{Log: GinkgoWriter})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(table.Kill)
		engine := newToldEngine()
		var answered atomic.Int64
		engine.does(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			answered.Add(1)
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"object":"chat.completion","choices":[]}`)
		})
		c := startCluster("--regions", "use1", "--instances", "2", "--engine-url", engine.server.URL, "--model-name", "told", "--ask=false",
			"--fleet-dynamodb", table.Endpoint())
		Eventually(ctx, func() *seal.Recipient { return c.fleetKey(ctx) }, "30s", "200ms").ShouldNot(BeNil())
		key := c.fleetKey(ctx)
		bothHold := func(ctx context.Context) int {
			return strings.Count(get(ctx, c.env()["MRGC_ADMIN_USE1"]+"/fleet"), key.KeyID().String())
		}
		Eventually(ctx, func() int { return bothHold(ctx) }, "30s", "200ms").Should(Equal(2))

		By("KMS has made one seed, and released it once more, to measured enclaves")
		var actions []string
		for _, e := range c.seedEvents() {
			actions = append(actions, e.Action)
			Expect(e.Error).To(BeEmpty())
			Expect(e.PCR0).To(Equal(c.measured()[0].PCRs[0].String()))
		}
		Expect(actions).To(ContainElements("kms:GenerateDataKey", "kms:Decrypt"))

		By("what is sealed to it is served by either instance")
		f := c.newForger(ctx)
		f.recipients = []*seal.Recipient{key}
		served := map[string]bool{}
		ask := func() (*seal.Sealed, *letter) {
			GinkgoHelper()
			sealed := f.seal(f.chat("hello"), func(r *seal.Request) { r.Affinity = "" }) // at home nowhere
			l := f.letter(sealed)
			r := f.send(ctx, l)
			status, body := r.opened(sealed)
			Expect(status).To(Equal(http.StatusOK), "%s", body)
			served[r.header.Get(api.HeaderServed)] = true
			return sealed, l
		}
		Eventually(ctx, func() map[string]bool { ask(); return served }, "30s", "10ms").Should(HaveLen(2))

		By("an envelope that was run is refused, whichever instance it comes to")
		_, ran := ask()
		calls := answered.Load()
		refusedBy := map[string]bool{}
		Eventually(ctx, func() map[string]bool {
			r := f.send(ctx, ran)
			Expect(r.status).To(Equal(http.StatusConflict), "%s", r.body)
			Expect(string(r.body)).To(ContainSubstring("request_replayed"))
			refusedBy[r.header.Get(api.HeaderServed)] = true
			return refusedBy
		}, "30s", "10ms").Should(HaveLen(2))
		Expect(answered.Load()).To(Equal(calls))

		By("a client that accepts fleets' keys alone uses it")
		base := c.connect(ctx, "--recipient-types", "fleet")
		status, body := c.chat(ctx, http.DefaultClient, base, "hello")
		Expect(status).To(Equal(http.StatusOK), body)

		By("all enclaves start anew, and hold the same key")
		unused := f.seal(f.chat("sealed before"), nil)
		before := c.pids()
		c.signal("enclave-", syscall.SIGKILL)
		Eventually(ctx, func() bool {
			now := c.pids()
			return now["enclave-use1-0"] != before["enclave-use1-0"] && now["enclave-use1-1"] != before["enclave-use1-1"]
		}, "30s", "100ms").Should(BeTrue())
		// The one that was run before is refused by who has never seen it.
		Eventually(ctx, func() string { r := f.send(ctx, ran); return string(r.body) }, "60s", "100ms").Should(ContainSubstring("request_replayed"))
		Expect(answered.Load()).To(Equal(calls + 1))
		Eventually(ctx, func() *seal.Recipient { return c.fleetKey(ctx) }, "30s", "100ms").ShouldNot(BeNil(), "routers offer it again once a parent has told them")
		Expect(c.fleetKey(ctx).KeyID()).To(Equal(key.KeyID()))
		letterOf := f.letter(unused)
		var answer reply
		Eventually(ctx, func() int { answer = f.send(ctx, letterOf); return answer.status }, "30s", "100ms").Should(Equal(http.StatusOK))
		status, opened := answer.opened(unused)
		Expect(status).To(Equal(http.StatusOK), "%s", opened)
		Expect(f.send(ctx, letterOf).status).To(Equal(http.StatusConflict))
		Expect(answered.Load()).To(Equal(calls + 2))

		By("each step is in the instances' audit logs")
		// In the last hour of an epoch enclaves hold the next one's key, too.
		byEpoch := func(event string) map[string]int {
			counts := map[string]int{}
			records := show(c, "parent-use1-0", event) + show(c, "parent-use1-1", event)
			for _, epoch := range regexp.MustCompile(`"epoch":"(\d+)"`).FindAllStringSubmatch(records, -1) {
				counts[epoch[1]]++
			}
			return counts
		}
		Eventually(ctx, func(g Gomega) {
			made := byEpoch(audit.FleetSeedMade)
			g.Expect(made).To(And(Not(BeEmpty()), HaveEach(1)), "each epoch's once")
			g.Expect(byEpoch(audit.FleetSeedReleased)).To(And(HaveLen(len(made)), HaveEach(3)), "to the three enclaves that did not make it")
		}, "20s", "200ms").Should(Succeed())

		By("the table goes away: its key runs nothing, and enclaves' own keys all")
		table.Kill()
		r := f.send(ctx, f.letter(f.seal(f.chat("unchecked"), nil)))
		Expect(r.status).To(Equal(http.StatusServiceUnavailable))
		Expect(string(r.body)).To(ContainSubstring("replay_unchecked"))
		Expect(answered.Load()).To(Equal(calls + 2))
		status, body = c.chat(ctx, http.DefaultClient, c.base(), "hello")
		Expect(status).To(Equal(http.StatusOK), body)
	}, SpecTimeout(5*time.Minute))
})

// measured are the releases that the cluster's clients trust.
func (c *cluster) measured() []attest.Release {
	GinkgoHelper()
	content, err := os.ReadFile(c.env()["MRGC_RELEASES"])
	Expect(err).NotTo(HaveOccurred())
	releases, err := attest.ParseReleases(content)
	Expect(err).NotTo(HaveOccurred())
	return releases
}
