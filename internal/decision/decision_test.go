package decision_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/decision"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

func now() time.Time { return time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC) }

// record is number n of a picker's decisions between three instances, as busy as
// chance has it.
func record(n int, policy routing.Policy) decision.Record {
	random := rand.New(rand.NewPCG(uint64(n), 1))
	r := decision.Record{
		At: now().Add(time.Duration(n) * time.Second), EnvoyID: fmt.Sprintf("envoy-%d", n), Tenant: "acme", Config: "c0ffee", FleetAt: now(),
		Request: routing.Request{
			ID: fmt.Sprintf("%032x", n), Model: "smol", Regions: []fleet.Region{"use1", "use2"}, Policy: policy,
			Detours:      []time.Duration{0, time.Duration(random.IntN(1e8))},
			PromptTokens: 1 << random.IntN(14), Sequence: uint64(n),
		},
	}
	for i, region := range []fleet.Region{"use1", "use1", "use2"} {
		kid := fmt.Sprintf("%016x", i)
		r.Request.Recipients = append(r.Request.Recipients, kid)
		in := &fleet.Instance{
			ID: fmt.Sprintf("%s-%d", region, i), Region: region, Models: []string{"smol"}, KeyIDs: []string{kid},
			Health: fleet.Health{Enclave: true, Engine: true}, HeartbeatAt: now(), Load: fleet.Load{Slots: 8},
		}
		r.Candidates = append(r.Candidates, routing.Candidate{
			Instance: in, Ready: random.IntN(10) > 0, Saturated: random.IntN(2) > 0, InFlight: random.IntN(9), InFlightTokens: random.IntN(20_000), ErrorRate: random.Float64() / 3,
			Report: routing.Report{
				Age: routing.Age(random.IntN(3)), Since: time.Duration(random.IntN(1e9)), Load: fleet.Load{Running: random.IntN(9), Slots: 8},
				UnreadTokens: random.IntN(20_000), ReadTokensPerSecond: 20_000 * random.Float64(), RequestDuration: time.Duration(random.IntN(4e9)),
			},
		})
		if random.IntN(4) == 0 {
			r.Request.Home = in.ID
		}
	}
	r.Decision = routing.Pick(r.Request, r.Candidates)
	return r
}

// trace is what Write makes of records.
func trace(records ...decision.Record) string {
	GinkgoHelper()
	var b bytes.Buffer
	Expect(decision.Write(&b, records...)).To(Succeed())
	return b.String()
}

// read reads a whole trace.
func read(trace string) ([]decision.Record, error) {
	var all []decision.Record
	reader := decision.NewReader(strings.NewReader(trace))
	for {
		r, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, r)
	}
}

// fill gives every field of a value something of its own.
func fill(v reflect.Value, n *int64) {
	*n++
	if at, is := v.Addr().Interface().(*time.Time); is {
		*at = now().Add(time.Duration(*n))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), n)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, n)
		fill(value, n)
		v.SetMapIndex(key, value)
	case reflect.String:
		v.SetString(fmt.Sprint("s", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint8:
		v.SetUint(1)
	case reflect.Uint, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n))
	case reflect.Int, reflect.Int64:
		v.SetInt(*n)
	case reflect.Float64:
		v.SetFloat(float64(*n) + 1.0/3)
	default:
		Fail("a field of a kind that this test does not know: " + v.Type().String())
	}
}

var _ = Describe("A trace", func() {
	// Of a field that somebody adds to a request or a candidate a policy may make
	// something, and a trace without it would replay otherwise.
	It("has everything that a pick depends on", func() {
		var r decision.Record
		var n int64
		fill(reflect.ValueOf(&r).Elem(), &n)
		in := r.Candidates[0].Instance
		r.Decision.Instances[0] = in
		in.Address, in.Usage, in.RegisteredAt, in.Version = "", nil, time.Time{}, 0 // of no use to a pick
		Expect(read(trace(r))).To(Equal([]decision.Record{r}))
	})

	It("of several routers is theirs one after the other", func() {
		a, b := record(1, 0), record(2, 0)
		Expect(read(trace(a) + trace(b))).To(HaveExactElements(
			HaveField("Request.ID", a.Request.ID), HaveField("Request.ID", b.Request.ID)))
	})

	good := func() string { return strings.TrimSpace(trace(record(1, 0))) }
	DescribeTable("is refused with", func(change func(string) string, reason string) {
		changed := change(good())
		Expect(changed).NotTo(Equal(good()))
		_, err := read(good() + "\n" + changed + "\n")
		Expect(err).To(MatchError(And(HavePrefix("trace: line 2: "), ContainSubstring(reason))))
	},
		Entry("something that is no JSON", func(string) string { return "decision" }, "not a decision"),
		Entry("half a line", func(s string) string { return s[:len(s)/2] }, "not a decision"),
		Entry("an unknown field", swap(`{"v":1`, `{"w":2,"v":1`), `unknown field "w"`),
		Entry("two on a line", func(s string) string { return s + s }, "something follows"),
		Entry("another format", swap(`{"v":1`, `{"v":2`), "is of format 2, this mrgc reads 1"),
		Entry("an unknown policy", swap("gate-then-load", "best"), `policy "best"`),
		Entry("an unknown age", func(s string) string {
			return strings.NewReplacer(`"age":"fresh"`, `"age":"new"`, `"age":"stale"`, `"age":"new"`, `"age":"missing"`, `"age":"new"`).Replace(s)
		}, `"new"`),
		Entry("a candidate twice", swap("use1-1", "use1-0"), `"use1-0" is there twice`),
		Entry("an order of others", swap(`"order":["`, `"order":["use9-9","`), `"use9-9" is not among`),
		Entry("a candidate without a name", swap(`"id":"use1-0"`, `"id":""`), "instance.id is empty"),
		Entry("a long text", swap("acme", strings.Repeat("a", 257)), "a text of 257 bytes"),
		Entry("many recipients", swap(`"recipients":[`, `"recipients":[`+strings.Repeat(`"x",`, 64)), "at most 64"),
		Entry("many regions", swap(`"regions":[`, `"regions":[`+strings.Repeat(`"x",`, 16)), "at most 16"),
		Entry("many keys", swap(`"keys":[`, `"keys":[`+strings.Repeat(`"x",`, 256)), "at most 256"),
		Entry("neither decision nor refusal", func(s string) string {
			return s[:strings.Index(s, `,"candidates"`)] + "}"
		}, "neither"),
		Entry("a line that is too long", func(s string) string { return s + strings.Repeat(" ", decision.MaxLineBytes) }, "longer than"),
	)
})

func swap(old, new string) func(string) string {
	return func(s string) string { return strings.Replace(s, old, new, 1) }
}

var policies = []routing.Policy{
	routing.PolicyGateThenLoad, routing.PolicyScore, routing.PolicyLeastInFlight, routing.PolicyPowerOfTwo, routing.PolicyRoundRobin,
}

var _ = Describe("A replay", func() {
	replay := func(records []decision.Record, policy *routing.Policy) decision.Result {
		all := decision.NewReplay(policy)
		for _, r := range records {
			all.Add(r)
		}
		return all.Result()
	}
	recorded := func(policy routing.Policy) (records []decision.Record) {
		for n := range 300 {
			records = append(records, record(n, policy))
		}
		read, err := read(trace(records...))
		Expect(err).NotTo(HaveOccurred())
		return read
	}

	It("is exact under the policy that decided, whether that is named or not", func() {
		for _, policy := range policies {
			for _, named := range []*routing.Policy{nil, &policy} {
				got := replay(recorded(policy), named)
				Expect(got.Decisions).To(Equal(300))
				Expect(got.Same).To(Equal(300))
				Expect(got.Differing).To(BeZero(), "%s", policy)
				Expect(got.Elsewhere).To(BeZero())
				Expect(got.FirstToken.Replayed).To(Equal(got.FirstToken.Recorded))
			}
		}
	})

	It("notices a decision that was changed", func() {
		records := recorded(routing.PolicyGateThenLoad)
		at := slices.IndexFunc(records, func(r decision.Record) bool { return len(r.Decision.Instances) > 1 })
		instances := records[at].Decision.Instances
		instances[0], instances[1] = instances[1], instances[0]
		got := replay(records, nil)
		Expect(got.Differing).To(Equal(1))
		Expect(got.FirstDiffering).To(Equal(records[at].Request.ID))
	})

	It("says what another policy would have done", func() {
		records := recorded(routing.PolicyGateThenLoad)
		other := routing.PolicyRoundRobin
		got := replay(records, &other)
		Expect(got.Same).To(BeZero())
		Expect(got.Elsewhere).To(BeNumerically(">", 50))
		Expect(got.FirstToken.Replayed.Mean).To(BeNumerically(">", got.FirstToken.Recorded.Mean))
		sum, sumWas := 0, 0
		for _, c := range got.Instances {
			sum, sumWas = sum+c.Replayed, sumWas+c.Recorded
		}
		Expect(sum).To(Equal(sumWas))
		Expect(got.Instances[1].Instance).To(Equal("use1-1"))
		Expect(got.Instances[1].Replayed).To(BeNumerically(">", 100)) // turns are counted
	})

	It("leaves out what was refused before anything was decided", func() {
		got := replay([]decision.Record{{Refusal: decision.Refusal{Code: "invalid_api_key"}}, record(1, 0)}, nil)
		Expect(got.Skipped).To(Equal(1))
		Expect(got.Decisions).To(Equal(1))
	})
})

var _ = Describe("An explanation", func() {
	It("names the runner-up and why it is not the first", func() {
		r := record(3, 0)
		got := decision.Explain(r, r.At.Add(time.Minute))
		Expect(got.AgeSec).To(Equal(60.0))
		Expect(got.Places).To(HaveLen(3))
		Expect(got.RunnerUp).To(Equal(r.Decision.Instances[1].ID))
		Expect(got.RunnerUpAfter).NotTo(BeEmpty())
		Expect(got.Places[0].Rank).To(Equal(1))
		Expect(got.Places[0].HeartbeatSec).To(Equal(3.0))
	})

	It("of a request that was refused at once has no places", func() {
		Expect(decision.Explain(decision.Record{At: now(), Refusal: decision.Refusal{Code: "c"}}, now()).Places).To(BeEmpty())
	})
})
