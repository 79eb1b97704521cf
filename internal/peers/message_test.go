package peers_test

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/peers"
)

// full is a message that has some of everything.
func full() *peers.Message {
	return &peers.Message{
		Epoch: peers.Epoch{Began: 1, ID: 1 << 63}, Sequence: 7,
		InFlight: []peers.Count{{Instance: "use1-0", Requests: 2, Tokens: 3000, SentRequests: 1, SentTokens: 1000}, {Instance: "use1-1", Requests: 1}},
		Homes:    []peers.Home{{Conversation: "k", Instance: "use1-0"}},
		Events:   []peers.Event{{Request: "r", Instance: "use1-1", Kind: peers.Moved, Used: peers.UsedUnknown}, {Request: "s", Kind: peers.Failed, Used: 7}},
		Claims:   []peers.Claim{{Model: "m", Tenant: "acme", Weight: 1, Tokens: 2000}, {Model: "m", Tenant: "umbra", Weight: 2, Tokens: 1}},
		Evidence: []peers.Evidence{
			{Model: "m", Canary: "2", Split: "s", Began: 5, Compared: 3, Logs: []float64{0.5, -1.25}}, {Model: "m", Canary: "3", Split: "s", Began: 5, Logs: []float64{}},
		},
		Uses:  []peers.Use{{Tenant: "acme", Count: 2, Requests: time.Second, Tokens: -time.Minute}, {Tenant: "umbra", Count: 1}},
		Begun: 2,
	}
}

func encoded(m *peers.Message) []byte {
	GinkgoHelper()
	raw, err := m.Encode()
	Expect(err).NotTo(HaveOccurred())
	return raw
}

var _ = Describe("A message", func() {
	It("arrives as it was sent", func() {
		Expect(peers.Decode(encoded(full()))).To(Equal(full()))
	})

	It("may have nothing to say", func() {
		got, err := peers.Decode(encoded(&peers.Message{Epoch: peers.Epoch{Began: 1}}))
		Expect(err).NotTo(HaveOccurred())
		Expect(got.InFlight).To(BeEmpty())
		Expect(got.Homes).To(BeEmpty())
		Expect(got.Events).To(BeEmpty())
		Expect(got.Claims).To(BeEmpty())
		Expect(got.Evidence).To(BeEmpty())
		Expect(got.Uses).To(BeEmpty())
	})

	It("fits when it is as large as may be", func() {
		m := full()
		m.InFlight, m.Homes, m.Events, m.Claims, m.Evidence, m.Uses = nil, nil, nil, nil, nil, nil
		id := func(i int) string {
			return string(rune('a'+i/100)) + string(rune('a'+i/10%10)) + string(rune('a'+i%10)) + strings.Repeat("i", 61)
		}
		for i := range peers.MaxInstances {
			m.InFlight = append(m.InFlight, peers.Count{Instance: id(i), Requests: 1 << 20, Tokens: 1 << 40})
		}
		for range peers.MaxHomes {
			m.Homes = append(m.Homes, peers.Home{Conversation: strings.Repeat("c", peers.MaxNameBytes), Instance: id(0)})
		}
		for range peers.MaxEvents {
			m.Events = append(m.Events, peers.Event{Request: strings.Repeat("r", peers.MaxNameBytes), Instance: id(0), Used: 2 << 20})
		}
		for i := range peers.MaxClaims {
			m.Claims = append(m.Claims, peers.Claim{Model: strings.Repeat("m", peers.MaxNameBytes), Tenant: id(i), Weight: 1000, Tokens: 1 << 40})
		}
		for i := range peers.MaxUses {
			m.Uses = append(m.Uses, peers.Use{Tenant: id(i), Count: 1 << 63, Requests: 1 << 61, Tokens: -1 << 61})
		}
		for i := range peers.MaxEvidence {
			logs := make([]float64, peers.MaxLogs)
			for k := range logs {
				logs[k] = math.Pi * float64(k+1)
			}
			m.Evidence = append(m.Evidence, peers.Evidence{
				Model: strings.Repeat("m", peers.MaxNameBytes), Canary: id(i) + strings.Repeat("v", peers.MaxNameBytes-64), Split: id(0),
				Began: 1 << 62, Compared: 1 << 40, Logs: logs,
			})
		}
		Expect(peers.Decode(encoded(m))).To(Equal(m))
	})

	It("has the largest claims of more than fit", func() {
		var all []peers.Claim
		for i := range peers.MaxClaims + 2 {
			all = append(all, peers.Claim{Model: "m", Tenant: fmt.Sprintf("t-%04d", 9000-i), Weight: 1, Tokens: 1 + i/2})
		}
		m := full()
		m.Claims = peers.TopClaims(all)
		Expect(m.Claims).To(And(HaveLen(peers.MaxClaims), Not(ContainElement(HaveField("Tokens", 1)))))
		Expect(peers.Decode(encoded(m))).To(Equal(m))
	})

	DescribeTable("is refused by both sides", func(breakIt func(*peers.Message), reason string) {
		m := full()
		breakIt(m)
		_, err := m.Encode()
		Expect(err).To(MatchError(ContainSubstring(reason)))
		raw, err := cbor.Marshal(m) // what a sender without our checks would send
		Expect(err).NotTo(HaveOccurred())
		_, err = peers.Decode(raw)
		Expect(err).To(HaveOccurred())
	},
		Entry("without an epoch", func(m *peers.Message) { m.Epoch.Began = 0 }, "without an epoch"),
		Entry("with too many instances", func(m *peers.Message) { m.InFlight = make([]peers.Count, peers.MaxInstances+1) }, "1025 counts"),
		Entry("with too many homes", func(m *peers.Message) { m.Homes = make([]peers.Home, peers.MaxHomes+1) }, "257 homes"),
		Entry("with too many events", func(m *peers.Message) { m.Events = make([]peers.Event, peers.MaxEvents+1) }, "257 events"),
		Entry("with an instance twice", func(m *peers.Message) { m.InFlight[1].Instance = "use1-0" }, "in order"),
		Entry("with instances out of order", func(m *peers.Message) { m.InFlight[0].Instance = "use1-2" }, "in order"),
		Entry("with a nameless instance", func(m *peers.Message) { m.InFlight[0].Instance = "" }, "in order"),
		Entry("with an instance's name too long", func(m *peers.Message) { m.InFlight[1].Instance = strings.Repeat("x", 65) }, "in order"),
		Entry("with no requests on an instance", func(m *peers.Message) { m.InFlight[0].Requests = 0 }, "0 requests"),
		Entry("with too many requests", func(m *peers.Message) { m.InFlight[0].Requests = 1<<20 + 1 }, "1048577 requests"),
		Entry("with fewer than no tokens", func(m *peers.Message) { m.InFlight[0].Tokens = -1 }, "-1 tokens"),
		Entry("with too many tokens", func(m *peers.Message) { m.InFlight[0].Tokens = 1<<40 + 1 }, "tokens"),
		Entry("with more new tokens than tokens", func(m *peers.Message) { m.InFlight[0].SentTokens = 3001 }, "3001 of them new"),
		Entry("with fewer than no new tokens", func(m *peers.Message) { m.InFlight[0].SentTokens = -1 }, "-1 of them new"),
		Entry("with more new requests than requests", func(m *peers.Message) { m.InFlight[0].SentRequests = 3 }, "3 and 1000 of them new"),
		Entry("with fewer than no new requests", func(m *peers.Message) { m.InFlight[0].SentRequests = -1 }, "-1 and 1000 of them new"),
		Entry("with too many claims", func(m *peers.Message) { m.Claims = make([]peers.Claim, peers.MaxClaims+1) }, "257 claims"),
		Entry("with a claim twice", func(m *peers.Message) { m.Claims[1] = m.Claims[0] }, "in order"),
		Entry("with a claim to nothing", func(m *peers.Message) { m.Claims[0].Model = "" }, "in order"),
		Entry("with a claim of nobody", func(m *peers.Message) { m.Claims[0].Tenant = "" }, "in order"),
		Entry("with a claim of no weight", func(m *peers.Message) { m.Claims[0].Weight = 0 }, "weight 0"),
		Entry("with a claim of too much weight", func(m *peers.Message) { m.Claims[0].Weight = 1025 }, "weight 1025"),
		Entry("with a claim of no tokens", func(m *peers.Message) { m.Claims[0].Tokens = 0 }, "0 tokens"),
		Entry("with a claim of too many tokens", func(m *peers.Message) { m.Claims[0].Tokens = 1<<40 + 1 }, "tokens"),
		Entry("with too much evidence", func(m *peers.Message) { m.Evidence = make([]peers.Evidence, peers.MaxEvidence+1) }, "33 canaries"),
		Entry("with a canary twice", func(m *peers.Message) { m.Evidence[1].Canary = "2" }, "in order"),
		Entry("with evidence of no model", func(m *peers.Message) { m.Evidence[0].Model = "" }, "in order"),
		Entry("with evidence of no canary", func(m *peers.Message) { m.Evidence[0].Canary = "" }, "in order"),
		Entry("with evidence under no weights", func(m *peers.Message) { m.Evidence[0].Split = "" }, "in order"),
		Entry("with evidence that has not begun", func(m *peers.Message) { m.Evidence[0].Began = 0 }, "says nothing"),
		Entry("with evidence of fewer than no requests", func(m *peers.Message) { m.Evidence[0].Compared = -1 }, "says nothing"),
		Entry("with more sums than there can be", func(m *peers.Message) { m.Evidence[0].Logs = make([]float64, peers.MaxLogs+1) }, "says nothing"),
		Entry("with a sum that is no number", func(m *peers.Message) { m.Evidence[0].Logs[0] = math.NaN() }, "says nothing"),
		Entry("with a sum without end", func(m *peers.Message) { m.Evidence[0].Logs[0] = math.Inf(-1) }, "says nothing"),
		Entry("with too many uses", func(m *peers.Message) { m.Uses = make([]peers.Use, peers.MaxUses+1) }, "257 uses"),
		Entry("with a tenant's use twice", func(m *peers.Message) { m.Uses[1].Tenant = "acme" }, "uses are not in order"),
		Entry("with a use of nobody's", func(m *peers.Message) { m.Uses[0].Tenant = "" }, "uses are not in order"),
		Entry("with a use of no count", func(m *peers.Message) { m.Uses[0].Count = 0 }, "uses are not in order"),
		Entry("with requests of more than a century", func(m *peers.Message) { m.Uses[0].Requests = math.MaxInt64 }, "uses are not in order"),
		Entry("with tokens of less", func(m *peers.Message) { m.Uses[0].Tokens = math.MinInt64 }, "uses are not in order"),
		Entry("with a home of nobody", func(m *peers.Message) { m.Homes[0].Conversation = "" }, "home"),
		Entry("with a home of too long a name", func(m *peers.Message) { m.Homes[0].Conversation = strings.Repeat("c", 257) }, "home"),
		Entry("with a home nowhere", func(m *peers.Message) { m.Homes[0].Instance = "" }, "home"),
		Entry("with an event of nothing", func(m *peers.Message) { m.Events[0].Request = "" }, "event"),
		Entry("with an event at too long a name", func(m *peers.Message) { m.Events[0].Instance = strings.Repeat("x", 65) }, "event"),
		Entry("with an event of fewer tokens than none", func(m *peers.Message) { m.Events[0].Used = -2 }, "event"),
		Entry("with an event of too many tokens", func(m *peers.Message) { m.Events[0].Used = 2<<20 + 1 }, "event"),
		Entry("with an event of another kind", func(m *peers.Message) { m.Events[0].Kind = peers.Failed + 1 }, "event"),
	)

	DescribeTable("is not", func(change func([]byte) []byte) {
		_, err := peers.Decode(change(encoded(full())))
		Expect(err).To(HaveOccurred())
	},
		Entry("nothing", func([]byte) []byte { return nil }),
		Entry("one that ends early", func(raw []byte) []byte { return raw[:len(raw)-1] }),
		Entry("one that goes on", func(raw []byte) []byte { return append(raw, 0) }),
		Entry("one with a field too few", func(raw []byte) []byte { raw[0]--; return raw }),
		Entry("one that is too large", func([]byte) []byte { return make([]byte, peers.MaxMessageBytes+1) }),
		Entry("another item", func([]byte) []byte { return []byte{0xa0} }),
	)
})

// FuzzDecode: whatever is taken is within the limits, and its only form is
// taken as the same.
func FuzzDecode(f *testing.F) {
	for _, m := range []*peers.Message{full(), {Epoch: peers.Epoch{Began: 1}}} {
		raw, err := m.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := peers.Decode(raw)
		if err != nil {
			return
		}
		again, err := m.Encode()
		if err != nil {
			t.Fatalf("taken, and beyond a limit: %v", err)
		}
		read, err := peers.Decode(again)
		if err != nil {
			t.Fatal(err)
		}
		last, err := read.Encode()
		if err != nil || !bytes.Equal(again, last) {
			t.Fatalf("%x became %x (%v)", again, last, err)
		}
	})
}
