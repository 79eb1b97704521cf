package routing_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

func version(v string) func(*routing.Candidate) {
	return func(c *routing.Candidate) { c.Instance.Versions = map[string]string{model: v} }
}

func versionOf(in *fleet.Instance) string { return in.Versions[model] }

// split is v1 and v2 with a weight per mille.
func split(v2 int) routing.Split {
	return routing.Split{{Name: "v1", Weight: routing.SplitTotal - v2}, {Name: "v2", Weight: v2}}
}

// anySplit is of up to four versions.
func anySplit(t *rapid.T) routing.Split {
	var s routing.Split
	left := routing.SplitTotal
	n := rapid.IntRange(1, 4).Draw(t, "versions")
	for i := range n {
		weight := left
		if i < n-1 {
			weight = rapid.IntRange(0, left).Draw(t, "weight")
		}
		left -= weight
		s = append(s, routing.Version{Name: fmt.Sprintf("v%d", i+1), Weight: weight})
	}
	return s
}

var _ = Describe("A split", func() {
	DescribeTable("is refused", func(s routing.Split, text string) {
		Expect(s.Validate()).To(MatchError(ContainSubstring(text)))
	},
		Entry("too little", routing.Split{{Name: "a", Weight: 999}}, "add up to 999"),
		Entry("too much", routing.Split{{Name: "a", Weight: 1000}, {Name: "b", Weight: 1}}, "add up to 1001"),
		Entry("negative", routing.Split{{Name: "a", Weight: 1001}, {Name: "b", Weight: -1}}, "has weight 1001"),
		Entry("negative first", routing.Split{{Name: "b", Weight: -1}, {Name: "a", Weight: 1001}}, "has weight -1"),
		Entry("twice", routing.Split{{Name: "a", Weight: 500}, {Name: "a", Weight: 500}}, "listed twice"),
		Entry("nameless", routing.Split{{Weight: 1000}}, "has no name"),
		Entry("too many", manyVersions(9), "there are 9"),
	)

	It("is valid when weights add up", func() {
		Expect(split(50).Validate()).To(Succeed())
		Expect(routing.Split{}.Validate()).To(Succeed())
		Expect(manyVersions(8).Validate()).To(Succeed())
	})

	It("gives each version its share, whatever the order, and 0 nothing", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			s := anySplit(t)
			shuffled := rapid.Permutation(s).Draw(t, "shuffled")
			seed := rapid.Uint32().Draw(t, "seed")
			const keys = 2000
			got := map[string]int{}
			for i := range keys {
				key := fmt.Sprintf("%08x-%d", seed, i)
				v := s.Of(key)
				if v != routing.Split(shuffled).Of(key) {
					t.Fatal("the order shows")
				}
				got[v]++
			}
			for _, v := range s {
				p := float64(v.Weight) / routing.SplitTotal
				// Five standard errors: once in a million.
				if off := math.Abs(float64(got[v.Name]) - keys*p); off > 5*math.Sqrt(keys*p*(1-p)) {
					t.Fatalf("%s of %v: %d of %d", v.Name, s, got[v.Name], keys)
				}
			}
		})
	})

	It("moves conversations to a version that is raised, and nothing else", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			s := anySplit(t)
			raised := s[rapid.IntRange(0, len(s)-1).Draw(t, "raised")].Name
			after := slices.Clone(s)
			for i := range after {
				if after[i].Name == raised {
					// Relative to the others, which is all that counts.
					after[i].Weight += rapid.IntRange(1, 1000).Draw(t, "by")
				}
			}
			for i := range 200 {
				key := fmt.Sprint(i)
				if was, is := s.Of(key), after.Of(key); was != is && is != raised {
					t.Fatalf("%s moved from %s to %s while %s was raised", key, was, is, raised)
				}
			}
		})
	})

	It("keeps every conversation that a raise from 5 to 10 % does not need", func() {
		moved := 0
		for i := range 10_000 {
			if split(50).Of(fmt.Sprint(i)) != split(100).Of(fmt.Sprint(i)) {
				moved++
			}
		}
		Expect(moved).To(BeNumerically("~", 500, 100))
	})
})

var _ = Describe("A split with another weight for one version", func() {
	three := routing.Split{{Name: "a", Weight: 600}, {Name: "b", Weight: 300}, {Name: "c", Weight: 100}}

	DescribeTable("leaves the others their proportions", func(s routing.Split, name string, weight int, want ...int) {
		got, err := s.With(name, weight)
		Expect(err).NotTo(HaveOccurred())
		for i := range want {
			Expect(got[i].Weight).To(Equal(want[i]), "%v", got)
		}
	},
		Entry("of three", three, "c", 400, 400, 200, 400),
		Entry("all", three, "b", 1000, 0, 1000, 0),
		Entry("nothing", three, "a", 0, 0, 750, 250),
		Entry("of two, whatever the other had", split(0), "v2", 0, 1000, 0),
		Entry("of two, back", split(1000), "v2", 0, 1000, 0),
	)

	DescribeTable("is refused", func(s routing.Split, name string, weight int, reason string) {
		_, err := s.With(name, weight)
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("of none", three, "d", 1, "not listed"),
		Entry("too much", three, "a", 1001, "want 0 to 1000"),
		Entry("negative", three, "a", -1, "want 0 to 1000"),
		Entry("nobody to take the rest", manyVersions(3), "0", 500, "none can take the rest"),
		Entry("withdrawn by rounding", three, "a", 999, "withdraws it"),
	)

	It("adds up, and is what it was", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			s := anySplit(t)
			before := slices.Clone(s)
			got, err := s.With(s[0].Name, rapid.IntRange(0, routing.SplitTotal).Draw(t, "weight"))
			if err == nil && got.Validate() != nil {
				t.Fatalf("%v of %v", got, s)
			}
			if !slices.Equal(s, before) {
				t.Fatal("the split itself has changed")
			}
		})
	})
})

func manyVersions(n int) (s routing.Split) {
	for i := range n {
		s = append(s, routing.Version{Name: fmt.Sprint(i)})
	}
	s[0].Weight = routing.SplitTotal
	return s
}

var _ = Describe("Pick with a split", func() {
	all := func(reqs ...string) routing.Request {
		req := request(reqs...)
		req.Split = routing.Split{{Name: "v1"}, {Name: "v2", Weight: 1000}}
		return req
	}
	DescribeTable("tries the chosen version first",
		func(req routing.Request, candidates []routing.Candidate, reason routing.Reason, v string, want ...string) {
			got := routing.Pick(req, candidates)
			Expect(got.Reason).To(Equal(reason))
			Expect(got.Version).To(Equal(v))
			Expect(ids(got.Instances)).To(HaveExactElements(want))
		},
		Entry("however busy, and no version of weight 0 even for retries", all("a", "b"),
			[]routing.Candidate{candidate("a", "use1", version("v1")), candidate("b", "use1", version("v2"), inFlight(9))},
			routing.ReasonPicked, "v2", "b"),
		Entry("in another region too", all("a", "b"),
			[]routing.Candidate{candidate("a", "use1", version("v1")), candidate("b", "use2", version("v2"))},
			routing.ReasonSpilled, "v2", "b"),
		Entry("nothing of weight 0, even if there is nothing else", all("a"),
			[]routing.Candidate{candidate("a", "use1", version("v1"))}, routing.ReasonVersionWithdrawn, ""),
		Entry("nothing of weight 0, even if the other is not ready: newer recipients may be", all("a", "b"),
			[]routing.Candidate{candidate("a", "use1", version("v1")), candidate("b", "use1", version("v2"), notReady)}, routing.ReasonVersionWithdrawn, ""),
		Entry("nothing that is not listed", all("a"),
			[]routing.Candidate{candidate("a", "use1", version("v3"))}, routing.ReasonVersionWithdrawn, ""),
		Entry("nothing that says no version", all("a"),
			[]routing.Candidate{candidate("a", "use1")}, routing.ReasonVersionWithdrawn, ""),
		Entry("a withdrawn one that is not ready says nothing", all("a"),
			[]routing.Candidate{candidate("a", "use1", version("v1"), notReady)}, routing.ReasonNoRecipientReady, ""),
	)

	// chosen finds a conversation of a version.
	chosen := func(s routing.Split, v string) string {
		for i := 0; ; i++ {
			if key := fmt.Sprint("c", i); s.Of(key) == v {
				return key
			}
		}
	}

	It("falls back to another version of some weight, and says so", func() {
		req := request("a", "b", "c")
		req.Split = split(500)
		req.Conversation = chosen(req.Split, "v2")
		a, b := candidate("a", "use1", version("v1")), candidate("b", "use1", version("v2"), inFlight(3))
		got := routing.Pick(req, []routing.Candidate{a, b})
		Expect(ids(got.Instances)).To(Equal([]string{"b", "a"}))
		Expect(got.Reason).To(Equal(routing.ReasonPicked))

		b.Ready = false
		got = routing.Pick(req, []routing.Candidate{a, b})
		Expect(ids(got.Instances)).To(Equal([]string{"a"}))
		Expect(got.Reason).To(Equal(routing.ReasonOtherVersion))
		Expect(got.Version).To(Equal("v1"))
	})

	It("takes what does not fail before what is of the chosen version", func() {
		req := request("a", "b")
		req.Split = split(500)
		req.Conversation = chosen(req.Split, "v2")
		got := routing.Pick(req, []routing.Candidate{candidate("a", "use1", version("v1")), candidate("b", "use1", version("v2"), errorRate(1))})
		Expect(ids(got.Instances)).To(Equal([]string{"a", "b"}))
		Expect(got.Reason).To(Equal(routing.ReasonOtherVersion))
	})

	It("probes a failing instance with requests of its own version only", func() {
		candidates := []routing.Candidate{candidate("a", "use1", version("v1")), candidate("b", "use1", version("v2"), errorRate(1))}
		probes := map[string]int{}
		for i := range 20_000 {
			req := request("a", "b")
			req.Split, req.ID = split(500), fmt.Sprint(i)
			if routing.Pick(req, candidates).Instances[0].ID == "b" {
				probes[req.Split.Of(req.ID)]++
			}
		}
		Expect(probes).To(HaveLen(1))
		Expect(probes["v2"]).To(BeNumerically("~", 78, 40))
	})

	It("lets a conversation's home decide within the version only", func() {
		req := talk()
		req.Recipients = []string{"kid-a", "kid-b", "kid-c"}
		req.Split = split(500)
		req.Conversation = chosen(req.Split, "v2")
		got := routing.Pick(req, []routing.Candidate{candidate("a", "use1", version("v1")), candidate("b", "use1", version("v2"))})
		Expect(got.Instances[0].ID).To(Equal("b"))
		Expect(got.Gate).To(Equal(routing.GateReleased))
		got = routing.Pick(req, []routing.Candidate{candidate("a", "use1", version("v2"), tokens(100)), candidate("b", "use1", version("v2"))})
		Expect(got.Instances[0].ID).To(Equal("a"))
		Expect(got.Gate).To(Equal(routing.GateHome))
	})
})

var _ = Describe("An offer of several versions", func() {
	It("has one of each version that the region has, and nothing withdrawn", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			s := anySplit(t)
			all := anyFleet(t)
			weight := map[string]int{}
			for _, v := range s {
				weight[v.Name] = v.Weight
			}
			local := map[string]bool{}
			for i := range all {
				v := fmt.Sprintf("v%d", rapid.IntRange(1, 5).Draw(t, "version"))
				all[i].Instance.Versions, all[i].ErrorRate = map[string]string{model: v}, 0
				in := all[i].Instance
				if all[i].Ready && in.Region == "use1" && in.Models[0] == model && weight[v] > 0 {
					local[v] = true
				}
			}
			o := routing.Offer{Model: model, N: rapid.IntRange(1, 5).Draw(t, "n"), Regions: []fleet.Region{"use1", "use2", "usw2"}, Split: s, Seed: rapid.Uint64().Draw(t, "seed")}
			got := routing.Candidates(o, all)
			has := map[string]bool{}
			for _, in := range got {
				if weight[versionOf(in)] == 0 {
					t.Fatalf("%s has been withdrawn", versionOf(in))
				}
				has[versionOf(in)] = true
			}
			missing := 0
			for v := range local {
				if !has[v] {
					missing++
				}
			}
			if missing > max(0, len(local)-o.N) {
				t.Fatalf("of %v there are %v, n %d", local, has, o.N)
			}
		})
	})

	It("draws an only recipient by the weights", func() {
		all := []routing.Candidate{candidate("a", "use1", version("v1")), candidate("b", "use1", version("v2")), candidate("c", "use1", version("v1"))}
		n := 0
		for i := range 10_000 {
			o := routing.Offer{Model: model, N: 1, Regions: []fleet.Region{"use1"}, Split: split(300), Seed: uint64(i)}
			if routing.Candidates(o, all)[0].ID == "b" {
				n++
			}
		}
		Expect(n).To(BeNumerically("~", 3000, 230))
	})

	It("has a version that the region lacks from another", func() {
		all := []routing.Candidate{
			candidate("a", "use1", version("v1")), candidate("b", "use1", version("v1")), candidate("c", "use1", version("v1")),
			candidate("r", "use2", version("v1")), candidate("s", "usw2", version("v2")),
		}
		for seed := range 100 {
			o := routing.Offer{Model: model, N: 3, Regions: []fleet.Region{"use1", "use2", "usw2"}, Split: split(300), Seed: uint64(seed)}
			Expect(routing.Candidates(o, all)[2].ID).To(Equal("s"))
		}
	})

	// Clients seal to three recipients of their last offer, and the picker chooses
	// among those.
	DescribeTable("lets the picker keep to the split within 1 % over 10,000 requests",
		func(v2, instances, of2 int, conversations bool) {
			const requests, clients, refresh = 10_000, 100, 50
			random := rand.New(rand.NewPCG(1, uint64(v2)))
			var all []routing.Candidate
			for i := range instances {
				v := "v1"
				if i < of2 {
					v = "v2"
				}
				all = append(all, candidate(fmt.Sprintf("i%d", i), "use1", version(v), inFlight(i%5)))
			}
			all = append(all, candidate("r", "use2", version("v1")), candidate("s", "use2", version("v2")))
			offers := make([][]string, clients)
			got := 0
			for i := range requests {
				client := random.IntN(clients)
				if offers[client] == nil || random.IntN(refresh) == 0 {
					offers[client] = nil
					o := routing.Offer{Model: model, N: 3, Regions: []fleet.Region{"use1", "use2"}, Split: split(v2), Seed: random.Uint64()}
					for _, in := range routing.Candidates(o, all) {
						offers[client] = append(offers[client], in.KeyIDs...)
					}
				}
				req := routing.Request{ID: fmt.Sprintf("%032x", i), Model: model, Recipients: offers[client], Regions: []fleet.Region{"use1", "use2"}, Split: split(v2)}
				if conversations {
					req.Conversation = fmt.Sprint("c", random.IntN(requests/4))
				}
				decision := routing.Pick(req, all)
				Expect(decision.Reason).To(Equal(routing.ReasonPicked))
				if decision.Version == "v2" {
					got++
				}
			}
			Expect(float64(got) / requests).To(BeNumerically("~", float64(v2)/routing.SplitTotal, 0.01))
		},
		Entry("5 %, one of twenty", 50, 20, 1, false),
		Entry("5 %, one of two", 50, 2, 1, false),
		Entry("10 %, of conversations", 100, 8, 2, true),
		Entry("50 %", 500, 8, 1, false),
		Entry("99.9 %", 999, 8, 4, false),
		Entry("0", 0, 8, 4, true),
	)
})

var _ = Describe("Weights for a balancer that knows no versions", func() {
	scored := func(v string, score uint32) routing.Scored {
		c := candidate("x", "use1", version(v))
		return routing.Scored{Instance: c.Instance, Score: score}
	}

	DescribeTable("are share times score", func(s routing.Split, want []uint32, instances ...routing.Scored) {
		Expect(s.Weights(model, instances)).To(Equal(want))
	},
		Entry("no split: the scores", nil, []uint32{70, 5}, scored("v1", 70), scored("v2", 5)),
		Entry("by share, then by score", split(100), []uint32{1350, 1350, 300}, scored("v1", 50), scored("v1", 50), scored("v2", 90)),
		Entry("by score within a version", split(100), []uint32{2025, 675, 300}, scored("v1", 90), scored("v1", 30), scored("v2", 5)),
		Entry("nothing for what is withdrawn, unlisted or nameless", split(0), []uint32{4000, 0, 0, 0}, scored("v1", 1), scored("v2", 90), scored("v3", 90), scored("", 90)),
		Entry("others take what a version without instances lacks", split(900), []uint32{1000}, scored("v1", 1)),
		Entry("nothing for a version of weight 0 that is alone", split(1000), []uint32{0}, scored("v1", 50)),
	)

	It("keep to the split, whatever the instances", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			s := anySplit(t)
			var instances []routing.Scored
			for _, v := range s { // each has some
				for range rapid.IntRange(1, 5).Draw(t, "n") {
					instances = append(instances, scored(v.Name, rapid.Uint32Range(1, 100).Draw(t, "score")))
				}
			}
			got, total := map[string]float64{}, 0.0
			for i, w := range s.Weights(model, instances) {
				got[versionOf(instances[i].Instance)] += float64(w)
				total += float64(w)
			}
			for _, v := range s {
				if share := float64(v.Weight) / routing.SplitTotal; math.Abs(got[v.Name]/total-share) > 0.005 || share == 0 && got[v.Name] != 0 {
					t.Fatalf("%s of %v has %v of %v", v.Name, s, got[v.Name], total)
				}
			}
		})
	})
})
