package loadreport_test

import (
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/loadreport"
)

func TestLoadReport(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "loadreport")
}

// full has a value in every field.
func full() loadreport.Report {
	return loadreport.Report{
		Queued: 3, Running: 12, Slots: 16, KVCacheUse: 0.31, TokensInFlight: 9216,
		UnreadTokens: 1024, ReadTokensPerSecond: 20_000, RequestDuration: 1500 * time.Millisecond,
		RequestsPerSecond: 12.5, ErrorsPerSecond: 0.25,
		GPU:    loadreport.GPU{Utilization: 0.97, Memory: 0.88, TemperatureC: 64},
		Models: []loadreport.Model{{Name: "llama-3/8b", Version: "2026-09-01"}, {Name: "smol", Version: ""}},
	}
}

// reports draws any report that is valid.
func reports() *rapid.Generator[loadreport.Report] {
	share, rate := rapid.Float64Range(0, 1), rapid.Float64Range(0, 1e9)
	count := rapid.IntRange(0, 1<<30)
	return rapid.Custom(func(t *rapid.T) loadreport.Report {
		r := loadreport.Report{
			Queued: count.Draw(t, "queued"), Running: count.Draw(t, "running"), Slots: count.Draw(t, "slots"),
			KVCacheUse: share.Draw(t, "kv"), TokensInFlight: count.Draw(t, "tokens"),
			UnreadTokens: count.Draw(t, "unread"), ReadTokensPerSecond: rate.Draw(t, "read"),
			RequestDuration:   time.Duration(rapid.Int64Range(0, int64(24*time.Hour)).Draw(t, "duration")),
			RequestsPerSecond: rate.Draw(t, "rps"), ErrorsPerSecond: rate.Draw(t, "eps"),
		}
		if rapid.Bool().Draw(t, "has a GPU") {
			r.GPU = loadreport.GPU{
				Utilization: share.Draw(t, "gpu"), Memory: share.Draw(t, "memory"),
				TemperatureC: rapid.Float64Range(0, 150).Draw(t, "temperature"),
			}
		}
		names := rapid.SliceOfNDistinct(rapid.StringMatching(`[A-Za-z0-9._/:-]{1,12}`), 0, 5, rapid.ID).Draw(t, "models")
		for _, name := range sorted(names) {
			r.Models = append(r.Models, loadreport.Model{Name: name, Version: rapid.StringMatching(`[A-Za-z0-9._+-]{0,12}`).Draw(t, "version")})
		}
		return r
	})
}
