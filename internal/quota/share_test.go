package quota_test

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/quota"
)

var _ = Describe("A share", func() {
	DescribeTable("is all that a tenant may have while nothing is free", func(use quota.Use, overload float64, over bool) {
		Expect(quota.Over(use, overload)).To(Equal(over))
	},
		Entry("something is free", quota.Use{Tokens: 99, AllTokens: 100, Share: 1, AllShares: 2}, 1.0, false),
		Entry("more than its share", quota.Use{Tokens: 51, AllTokens: 100, Share: 1, AllShares: 2}, 1.01, true),
		Entry("less", quota.Use{Tokens: 49, AllTokens: 100, Share: 1, AllShares: 2}, 1.01, false),
		Entry("nothing", quota.Use{AllTokens: 100, Share: 1, AllShares: 1000}, 50.0, false),
		Entry("its share of what is, and more than of what should be", quota.Use{Tokens: 50, AllTokens: 100, Share: 1, AllShares: 2}, 1.2, true),
		Entry("more, but it weighs more", quota.Use{Tokens: 70, AllTokens: 100, Share: 3, AllShares: 4}, 1.05, false),
		Entry("more than its weight", quota.Use{Tokens: 76, AllTokens: 100, Share: 3, AllShares: 4}, 1.05, true),
		Entry("everything, and nobody else asks", quota.Use{Tokens: 100, AllTokens: 100, Share: 1, AllShares: 1}, 9.0, false),
	)

	It("refuses everybody who has more than it of what is in flight, and nobody who has less of what should be", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			tokens := rapid.SliceOfN(rapid.IntRange(0, 1000), 2, 6).Draw(t, "tokens")
			weights := rapid.SliceOfN(rapid.IntRange(1, 10), len(tokens), len(tokens)).Draw(t, "weights")
			overload := rapid.Float64Range(0, 3).Draw(t, "overload")
			allTokens, allShares := 0, 0
			for i := range tokens {
				allTokens, allShares = allTokens+tokens[i], allShares+weights[i]
			}
			for i := range tokens {
				over := quota.Over(quota.Use{Tokens: tokens[i], AllTokens: allTokens, Share: weights[i], AllShares: allShares}, overload)
				share := float64(allTokens) * float64(weights[i]) / float64(allShares)
				switch has := float64(tokens[i]); {
				case overload <= 1 && over:
					t.Fatalf("tenant %d is refused while something is free", i)
				case overload > 1 && has > share*(1+1e-9) && !over:
					t.Fatalf("tenant %d has %v of its %v and is admitted", i, has, share)
				case overload > 1 && has < share/overload*(1-1e-9) && over:
					t.Fatalf("tenant %d has %v of its %v, overload %v, and is refused", i, has, share, overload)
				}
			}
		})
	})

	It("is of those who have asked for the model within a minute", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			type ask struct {
				share int
				at    time.Time
			}
			var recent quota.Recent
			twin, now := map[[2]string]ask{}, epoch()
			for range rapid.IntRange(1, 50).Draw(t, "asks") {
				now = now.Add(time.Duration(rapid.IntRange(0, 40).Draw(t, "seconds")) * time.Second)
				model, name := rapid.SampledFrom([]string{"m", "n"}).Draw(t, "model"), rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "tenant")
				share := rapid.IntRange(1, 5).Draw(t, "share") // a new list may change it
				twin[[2]string{model, name}] = ask{share, now}
				want := 0
				for of, a := range twin {
					if of[0] == model && now.Sub(a.at) < time.Minute {
						want += a.share
					}
				}
				if got := recent.Ask(model, name, share, now); got != want {
					t.Fatalf("%d shares, want %d", got, want)
				}
			}
		})
	})
})
