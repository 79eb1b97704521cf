package routing_test

import (
	"fmt"
	"testing"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

func BenchmarkPick(b *testing.B) {
	var candidates []routing.Candidate
	for i := range 40 {
		region := []fleet.Region{"use1", "use2", "usw2"}[i%3]
		candidates = append(candidates, candidate(fmt.Sprintf("%s-%d", region, i), region, inFlight(i%4)))
	}
	req := request("use1-0", "use1-9", "use2-13", "usw2-23")
	req.ID = "0123456789abcdef0123456789abcdef"
	b.ReportAllocs()
	for b.Loop() {
		if d := routing.Pick(req, candidates); len(d.Instances) != 4 {
			b.Fatal(d.Reason)
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
