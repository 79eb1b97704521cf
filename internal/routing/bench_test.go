package routing_test

import (
	"fmt"
	"testing"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

// benchFleet is 40 busy instances of three regions.
func benchFleet() []routing.Candidate {
	var candidates []routing.Candidate
	for i := range 40 {
		region := []fleet.Region{"use1", "use2", "usw2"}[i%3]
		candidates = append(candidates, candidate(fmt.Sprintf("%s-%d", region, i), region, inFlight(i%4), tokens(1000*(i%5))))
	}
	return candidates
}

// BenchmarkPick orders three recipients, two of them local, by every policy:
// among the recipients alone, as extproc looks them up, and among a fleet of 40.
func BenchmarkPick(b *testing.B) {
	all := benchFleet()
	req := request("use1-0", "use1-9", "use2-13")
	req.ID, req.Home = "0123456789abcdef0123456789abcdef", "use1-9"
	req.PromptTokens = 2048
	for _, among := range []struct {
		name       string
		candidates []routing.Candidate
	}{{"3", []routing.Candidate{all[0], all[9], all[13]}}, {"40", all}} {
		for _, policy := range policies {
			b.Run(fmt.Sprintf("%s/among=%s", policy, among.name), func(b *testing.B) {
				req := req
				req.Policy = policy
				b.ReportAllocs()
				for b.Loop() {
					req.Sequence++
					if d := routing.Pick(req, among.candidates); len(d.Instances) != 3 {
						b.Fatal(d.Reason)
					}
				}
			})
		}
	}
}

func BenchmarkCandidates(b *testing.B) {
	offer := routing.Offer{Model: model, N: 3, Regions: []fleet.Region{"use1", "use2", "usw2"}}
	candidates := benchFleet()
	b.ReportAllocs()
	for b.Loop() {
		offer.Seed++
		if got := routing.Candidates(offer, candidates); len(got) != 3 {
			b.Fatal(got)
		}
	}
}

func BenchmarkScore(b *testing.B) {
	load := fleet.Load{Running: 3, Queued: 1, Slots: 4, Latency: 300_000_000}
	b.ReportAllocs()
	for b.Loop() {
		routing.Score(healthy, load)
	}
}
