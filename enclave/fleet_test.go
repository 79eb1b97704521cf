package enclave_test

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/enclave"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/awscall"
	"github.com/mrgc/mrgc/internal/fleetkey"
	"github.com/mrgc/mrgc/internal/fleetkey/fleetkeytest"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/internal/tenant/tenanttest"
	"github.com/mrgc/mrgc/internal/testclock"
	"github.com/mrgc/mrgc/standin/softkms"
	"github.com/mrgc/mrgc/standin/softkms/softkmstest"
)

const fleetKMSKey = "mrk-fleet"

// fakeTable is a fleet's table in memory.
type fakeTable struct {
	mu    sync.Mutex
	fail  error                      // guarded by mu
	seeds map[seal.FleetEpoch][]byte // guarded by mu
	runs  map[string]bool            // guarded by mu
}

func newFakeTable() *fakeTable {
	return &fakeTable{seeds: map[seal.FleetEpoch][]byte{}, runs: map[string]bool{}}
}

func (t *fakeTable) Seed(_ context.Context, of seal.FleetEpoch) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seeds[of], t.fail
}

func (t *fakeTable) PutSeed(_ context.Context, of seal.FleetEpoch, ciphertext []byte, _ time.Time) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fail != nil || t.seeds[of] != nil {
		return false, t.fail
	}
	t.seeds[of] = ciphertext
	return true, nil
}

func (t *fakeTable) Record(_ context.Context, key seal.KeyID, request seal.RequestID, _ time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	id := key.String() + request.String()
	if t.fail == nil && t.runs[id] {
		return seal.ErrReplayed
	}
	t.runs[id] = t.fail == nil
	return t.fail
}

func (t *fakeTable) SetCredentials(awscall.Credentials) {}

func (t *fakeTable) set(change func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change()
}

// noGuard is an engine that cannot be connected.
type noGuard struct{}

func (noGuard) RoundTrip(*http.Request) (*http.Response, error) { return nil, errors.New("no guard") }

// servesTenantsOf has an enclave know the tenant of another one.
func servesTenantsOf(r *running) func(*enclave.Config) {
	return func(c *enclave.Config) {
		c.Tenants = tenanttest.Keeper(GinkgoTB(), tenanttest.Tenant(tenant, "edge", string(r.key.EnclaveToken())))
	}
}

// fleetPolicy lets enclaves of this image make and decrypt seeds.
func fleetPolicy(w *softkmstest.World, pcr0 string) []byte {
	return []byte(strings.ReplaceAll(string(keyPolicy(w, pcr0)), `"kms:Decrypt"`, `["kms:GenerateDataKey","kms:Decrypt"]`))
}

func startFleetKMS() *softkmstest.World {
	GinkgoHelper()
	w := softkmstest.Start(GinkgoTB())
	_, err := w.CreateKey(fleetKMSKey, fleetPolicy(w, thisImage(w)))
	Expect(err).NotTo(HaveOccurred())
	return w
}

// ofFleet makes an enclave one of a fleet.
func ofFleet(table enclave.FleetTable) func(*enclave.Config) {
	return func(c *enclave.Config) {
		c.Fleet = &enclave.Fleet{Name: "prod", KMS: softkms.ARN(softkmstest.Region, fleetKMSKey), Table: table}
	}
}

// ofTable is ofFleet with a table in DynamoDB.
func ofTable(world *fleetkeytest.World) func(*enclave.Config) {
	return func(c *enclave.Config) { ofFleet(world.Table(GinkgoTB()))(c) }
}

// at sets the clock by hand, for enclaves that start at other times.
func at(t time.Time) func(*enclave.Config) {
	return func(c *enclave.Config) {
		fixed := testclock.At(t)
		c.Now = fixed.Now
		c.DocumentTime = func([]byte) (time.Time, error) { return fixed.Now(), nil }
	}
}

// epochBegins is noon, when an epoch of 12 hours begins, and when start's clock
// stands.
var epochBegins = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// fleetKeys are the recipients of type fleet that the enclave offers.
func (r *running) fleetKeys() (keys []*seal.Recipient) {
	GinkgoHelper()
	all, _ := r.recipients()
	for _, key := range all {
		if key.Claims().Type == seal.TypeFleet {
			keys = append(keys, key)
		}
	}
	return keys
}

// awaitFleetKey is the newest one, as soon as there is one.
func (r *running) awaitFleetKey() *seal.Recipient {
	GinkgoHelper()
	Eventually(r.fleetKeys).WithTimeout(10 * time.Second).ShouldNot(BeEmpty())
	return r.fleetKeys()[0]
}

// wake has the enclave look after its keys.
func (r *running) wake(w *softkmstest.World) {
	GinkgoHelper()
	content, err := json.Marshal(api.AWSCredentials(w.Enclave.Credentials))
	Expect(err).NotTo(HaveOccurred())
	Expect(r.putCredentials(string(content))).To(Equal(http.StatusNoContent))
}

func (r *running) fleetSteps() (steps []string) {
	GinkgoHelper()
	resp, err := r.client.Get(r.url + api.PathKeyReleases + "?after=0")
	Expect(err).NotTo(HaveOccurred())
	defer resp.Body.Close()
	var said api.KeyReleases
	Expect(json.NewDecoder(resp.Body).Decode(&said)).To(Succeed())
	for _, release := range said.Releases {
		if release.Fleet != nil {
			steps = append(steps, release.Fleet.Step+" "+release.Fleet.Epoch)
		}
	}
	return steps
}

func seeds(w *softkmstest.World) (all []softkms.Event) {
	for _, e := range w.Events() {
		if e.Context["mrgc:fleet"] != "" {
			all = append(all, e)
		}
	}
	return all
}

var _ = Describe("A fleet's key", func() {
	It("is made once, held by all, and opens at any of them", func() {
		w, table := startFleetKMS(), newFakeTable()
		one := start(says(`{}`), withKMS(w), ofFleet(table))
		key := one.awaitFleetKey()
		other := startBeside(says(`{}`), withKMS(w), ofFleet(table))
		Expect(other.awaitFleetKey().KeyID()).To(Equal(key.KeyID()))
		Expect(key.Claims().NotBefore).To(Equal(epochBegins.Add(-time.Minute)))
		Expect(key.Claims().NotAfter).To(Equal(epochBegins.Add(24*time.Hour - time.Second)))

		context := map[string]string{"mrgc:fleet": "prod", "mrgc:region": "use1", "mrgc:epoch": "41027"}
		asked := seeds(w)
		Expect(asked).To(HaveLen(2))
		Expect(asked[0]).To(And(HaveField("Action", "kms:GenerateDataKey"), HaveField("Context", context), HaveField("PCR0", thisImage(w)), HaveField("Error", "")))
		Expect(asked[1]).To(And(HaveField("Action", "kms:Decrypt"), HaveField("Context", context), HaveField("PCR0", thisImage(w)), HaveField("Error", "")))
		Expect(one.fleetSteps()).To(Equal([]string{"made 41027"}))
		Expect(other.fleetSteps()).To(Equal([]string{"released 41027"}))

		for i, r := range []*running{one, other} {
			_, documents := r.recipients()
			digest := key.ClaimsDigest()
			Expect(documents[1]).To(ContainSubstring(hex.EncodeToString(digest[:])), "each attests it for itself: %d", i)
			sealed := r.sealTo([]*seal.Recipient{key}, chat)
			a := open(sealed, r.send(r.post(sealed)))
			Expect(a.err).NotTo(HaveOccurred())
			receipt, err := key.VerifyReceipt(a.end.Receipt)
			Expect(err).NotTo(HaveOccurred())
			Expect(receipt.Enclave.ClaimsSHA256).To(Equal(digest))
		}
	})

	It("runs an envelope once in all of the fleet, also when all of it has started anew", func() {
		w, table := startFleetKMS(), newFakeTable()
		one := start(says(`{}`), withKMS(w), ofFleet(table))
		key := one.awaitFleetKey()
		earlier, unused := one.sealTo([]*seal.Recipient{key}, chat), one.sealTo([]*seal.Recipient{key}, chat)
		Expect(open(earlier, one.send(one.post(earlier))).err).NotTo(HaveOccurred())

		again := startBeside(says(`{}`), withKMS(w), ofFleet(table), servesTenantsOf(one))
		Expect(again.awaitFleetKey().KeyID()).To(Equal(key.KeyID()))
		again.expectRefused(again.send(again.post(earlier)), http.StatusConflict, "request_replayed")
		Expect(open(unused, again.send(again.post(unused))).err).NotTo(HaveOccurred())
		Expect(again.send(again.post(unused)).StatusCode).To(Equal(http.StatusConflict))
		Expect(one.send(one.post(unused)).StatusCode).To(Equal(http.StatusConflict))
		Expect(one.engine.calls()).To(HaveLen(1))
		Expect(again.engine.calls()).To(HaveLen(1))
	})

	It("runs nothing while the table cannot be asked, and the same envelope when it can", func() {
		w, table := startFleetKMS(), newFakeTable()
		r := start(says(`{}`), withKMS(w), ofFleet(table))
		sealed := r.sealTo([]*seal.Recipient{r.awaitFleetKey()}, chat)
		table.set(func() { table.fail = fleetkey.ErrUnavailable })
		resp := r.send(r.post(sealed))
		Expect(resp.Header.Get("Retry-After")).To(Equal("1"))
		r.expectRefused(resp, http.StatusServiceUnavailable, "replay_unchecked")
		Expect(r.ask(chat).err).NotTo(HaveOccurred(), "the enclave's own key needs no table")

		table.set(func() { table.fail = nil })
		Expect(open(sealed, r.send(r.post(sealed))).err).NotTo(HaveOccurred())
	})

	It("says under seal that the engine was not there, since no other instance would run the envelope", func() {
		w, table := startFleetKMS(), newFakeTable()
		r := start(says(`{}`), withKMS(w), ofFleet(table), func(c *enclave.Config) { c.Engine = noGuard{} })
		sealed := r.sealTo([]*seal.Recipient{r.awaitFleetKey()}, chat)
		a := open(sealed, r.send(r.post(sealed)))
		r.expectSealedRefusal(a, http.StatusServiceUnavailable, "engine_unreachable")
		Expect(a.outcome).To(Equal(api.OutcomeFailed))
		r.expectRefused(r.send(r.post(sealed)), http.StatusConflict, "request_replayed")
	})

	It("names the enclave for a request by a tenant's data key, too, which runs once in all of the fleet", func() {
		w, table := startFleetKMS(), newFakeTable()
		_, err := w.CreateKey(tenantKey, keyPolicy(w, thisImage(w)))
		Expect(err).NotTo(HaveOccurred())
		one := start(says(`{}`), withKMS(w), ofFleet(table))
		key := one.awaitFleetKey()
		sealed := one.sealTo([]*seal.Recipient{key}, chat, byDataKey(w))
		Expect(open(sealed, one.send(one.post(sealed))).err).NotTo(HaveOccurred())
		other := startBeside(says(`{}`), withKMS(w), ofFleet(table), servesTenantsOf(one))
		other.awaitFleetKey()
		other.expectRefused(other.send(other.post(sealed)), http.StatusConflict, "request_replayed")
	})

	It("changes with the epoch: the next is there ahead, the one before opens until its claims end", func() {
		w, table := startFleetKMS(), newFakeTable()
		r := start(says(`{}`), withKMS(w), ofFleet(table))
		first := r.awaitFleetKey()
		r.clock.Advance(11 * time.Hour)
		r.wake(w)
		Eventually(r.fleetSteps).Should(Equal([]string{"made 41027", "made 41028"}))
		Expect(r.fleetKeys()).To(HaveLen(1), "but nobody is offered it yet")

		r.clock.Advance(time.Hour)
		keys := r.fleetKeys()
		Expect(keys).To(HaveLen(2))
		second := keys[0]
		Expect(second.Claims().NotBefore).To(Equal(epochBegins.Add(12*time.Hour - time.Minute)))
		Expect(keys[1].KeyID()).To(Equal(first.KeyID()))
		for _, key := range keys {
			sealed := r.sealTo([]*seal.Recipient{key}, chat)
			Expect(open(sealed, r.send(r.post(sealed))).err).NotTo(HaveOccurred())
		}

		r.clock.Advance(12 * time.Hour)
		Expect(r.send(r.post(r.sealTo([]*seal.Recipient{first}, chat))).StatusCode).To(Equal(http.StatusServiceUnavailable), "its claims have ended")
		r.wake(w)
		Eventually(r.fleetSteps).Should(ConsistOf("made 41027", "made 41028", "wiped 41027", "made 41029"))
		sealed := r.sealTo([]*seal.Recipient{second}, chat)
		Expect(open(sealed, r.send(r.post(sealed))).err).NotTo(HaveOccurred())
	})

	It("of the epoch before is taken by who starts now, and never made", func() {
		w, table := startFleetKMS(), newFakeTable()
		yesterday := start(says(`{}`), withKMS(w), ofFleet(table), at(epochBegins.Add(-6*time.Hour)))
		before := yesterday.awaitFleetKey()
		r := startBeside(says(`{}`), withKMS(w), ofFleet(table))
		r.awaitFleetKey()
		Eventually(r.fleetKeys).Should(HaveLen(2))
		Expect(r.fleetKeys()[1].KeyID()).To(Equal(before.KeyID()))
		Expect(r.fleetSteps()).To(ConsistOf("made 41027", "released 41026"))

		alone := startBeside(says(`{}`), withKMS(w), ofFleet(newFakeTable()))
		alone.awaitFleetKey()
		Consistently(alone.fleetSteps, "200ms").Should(Equal([]string{"made 41027"}))
	})

	It("is held, by the clock alone, from before its epoch begins until its claims end", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			length := time.Duration(rapid.Int64Range(12, 7*24*3600).Draw(t, "seconds")) * time.Second
			now := time.Unix(rapid.Int64Range(10*7*24*3600, 1<<33).Draw(t, "now"), rapid.Int64Range(0, 999_999_999).Draw(t, "ns"))
			wanted := enclave.WantedEpochs(now, length)
			present := 0
			for i, e := range wanted {
				Expect(e.NotAfter).To(BeTemporally("==", e.Start.Add(2*length-time.Second)))
				Expect(e.NotAfter).To(BeTemporally(">=", now.Truncate(time.Second)), "none is held that opens nothing any more")
				Expect(e.Start.Add(-length/12-time.Second)).To(BeTemporally("<=", now), "none is held long before it is offered")
				if i > 0 {
					Expect(e.Start).To(BeTemporally("==", wanted[i-1].Start.Add(-length)), "newest first, without gaps")
				}
				if !e.Start.After(now) && e.Start.Add(length).After(now) {
					present++
				}
			}
			Expect(present).To(Equal(1))
			oldest := wanted[len(wanted)-1]
			Expect(oldest.Start.Add(length-time.Second)).To(BeTemporally("<", now), "whatever is older has ended")
			Expect(wanted[0].Start.Add(length)).To(BeTemporally(">", now.Add(length/12)), "the next one is there ahead")
		})
	})

	DescribeTable("is not taken from a seed that is", func(plant func(w *softkmstest.World, planted map[string]string) []byte, reason string) {
		w, table := startFleetKMS(), newFakeTable()
		present := seal.FleetEpoch{Fleet: "prod", Region: "use1", Number: 41027}
		table.seeds[present] = plant(w, present.EncryptionContext())
		r := start(says(`{}`), withKMS(w), ofFleet(table))
		Eventually(r.fleetSteps).WithTimeout(10 * time.Second).Should(Equal([]string{"refused 41027"}))
		Expect(r.logs.String()).To(ContainSubstring(reason))
		Expect(r.fleetKeys()).To(BeEmpty())
		Expect(r.ask(chat).err).NotTo(HaveOccurred(), "the enclave serves by its own key")
	},
		Entry("another epoch's", func(w *softkmstest.World, _ map[string]string) []byte {
			_, ciphertext, err := w.DataKey(fleetKMSKey, seal.FleetEpoch{Fleet: "prod", Region: "use1", Number: 41026}.EncryptionContext())
			Expect(err).NotTo(HaveOccurred())
			return ciphertext
		}, "InvalidCiphertextException"),
		Entry("of a key that somebody else owns", func(w *softkmstest.World, context map[string]string) []byte {
			_, err := w.CreateKey("mrk-attacker", fleetPolicy(w, thisImage(w)))
			Expect(err).NotTo(HaveOccurred())
			_, ciphertext, err := w.DataKey("mrk-attacker", context)
			Expect(err).NotTo(HaveOccurred())
			return ciphertext
		}, "IncorrectKeyException"),
		Entry("none at all", func(*softkmstest.World, map[string]string) []byte { return []byte("x") }, "InvalidCiphertextException"),
	)

	It("is not had by an image that the policy does not name, and is had once it does", func() {
		w, table := startFleetKMS(), newFakeTable()
		Expect(w.PutKeyPolicy(fleetKMSKey, fleetPolicy(w, otherImage(w)))).To(Succeed())
		r := start(says(`{}`), withKMS(w), ofFleet(table))
		Eventually(r.fleetSteps).WithTimeout(10 * time.Second).Should(Equal([]string{"refused 41027"}))
		Expect(table.seeds).To(BeEmpty())
		r.wake(w)
		Eventually(func() []softkms.Event { return seeds(w) }).Should(HaveLen(2))
		Expect(w.PutKeyPolicy(fleetKMSKey, fleetPolicy(w, thisImage(w)))).To(Succeed())
		r.wake(w)
		r.awaitFleetKey()
		Expect(r.fleetSteps()).To(Equal([]string{"refused 41027", "made 41027"}), "what fails alike is told once")
	})

	It("is shared through DynamoDB as it is through the table of these tests", func() {
		world := fleetkeytest.Start(GinkgoTB())
		w := startFleetKMS()
		one := start(says(`{}`), withKMS(w), ofTable(world))
		key := one.awaitFleetKey()
		other := startBeside(says(`{}`), withKMS(w), ofTable(world), servesTenantsOf(one))
		Expect(other.awaitFleetKey().KeyID()).To(Equal(key.KeyID()))
		sealed := one.sealTo([]*seal.Recipient{key}, chat)
		Expect(open(sealed, other.send(other.post(sealed))).err).NotTo(HaveOccurred())
		one.expectRefused(one.send(one.post(sealed)), http.StatusConflict, "request_replayed")
		world.SetAway(true)
		one.expectRefused(one.send(one.post(one.sealTo([]*seal.Recipient{key}, chat))), http.StatusServiceUnavailable, "replay_unchecked")
	})

	DescribeTable("needs", func(reason string, change func(*enclave.Config)) {
		w := startFleetKMS()
		config := enclave.Config{Model: model, Region: "use1", Mode: seal.ModeProcess}
		withKMS(w)(&config)
		ofFleet(newFakeTable())(&config)
		change(&config)
		servesTenantsOf(&running{key: newAPIKey()})(&config)
		config.NSM, config.Engine = &fakeModule{}, noGuard{}
		_, err := enclave.New(context.Background(), config)
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("a name", "1 to 32", func(c *enclave.Config) { c.Fleet.Name = "a/b" }),
		Entry("a KMS key by its ARN", "want its ARN", func(c *enclave.Config) { c.Fleet.KMS = "alias/fleet" }),
		Entry("a table", "without a table", func(c *enclave.Config) { c.Fleet.Table = nil }),
		Entry("epochs of whole seconds", "whole seconds", func(c *enclave.Config) { c.Fleet.EpochLength = time.Millisecond }),
		Entry("a KMS", "come from KMS", func(c *enclave.Config) { c.KMS = nil }),
	)
})
