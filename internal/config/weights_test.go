package config_test

import (
	"os"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/config"
	"github.com/mrgc/mrgc/internal/routing"
)

var _ = Describe("Weights that are written into a file", func() {
	const file = `# the cluster
regions: [{name: use1, aws_region: us-east-1}]
models:
  - name: other
    versions: [{name: v1, weight: 900}, {weight: 100, name: v2}] # 100 of other
  - {name: m, versions: [{name: v1, weight: 950}, {name: v2, weight: 50}]} # 50
`
	split := func(v1 int) routing.Split {
		return routing.Split{{Name: "v1", Weight: v1}, {Name: "v2", Weight: routing.SplitTotal - v1}}
	}

	DescribeTable("change nothing else",
		func(model string, v1 int, before, after string) {
			got, err := config.WithSplit("mrgc.yaml", []byte(file), model, split(v1))
			Expect(err).NotTo(HaveOccurred())
			Expect(string(got)).To(Equal(strings.Replace(file, before, after, 1)))
		},
		Entry("in one line", "m", 0, "weight: 950}, {name: v2, weight: 50", "weight: 0}, {name: v2, weight: 1000"),
		Entry("in another order", "other", 1000, "weight: 900}, {weight: 100", "weight: 1000}, {weight: 0"),
		Entry("the same again", "m", 950, "", ""),
	)

	It("keep the example's comments", func() {
		text, err := os.ReadFile(examplePath)
		Expect(err).NotTo(HaveOccurred())
		got, err := config.WithSplit(examplePath, text, "qwen2.5-0.5b-instruct",
			routing.Split{{Name: "2026-10", Weight: 0}, {Name: "2026-11", Weight: 1000}})
		Expect(err).NotTo(HaveOccurred())
		Expect(string(got)).To(Equal(strings.NewReplacer("weight: 950", "weight: 0", "weight: 50", "weight: 1000").Replace(string(text))))
	})

	DescribeTable("are refused",
		func(text, model string, s routing.Split, reason string) {
			_, err := config.WithSplit("mrgc.yaml", []byte(text), model, s)
			Expect(err).To(MatchError(ContainSubstring(reason)))
		},
		Entry("a faulty file", strings.Replace(file, "950", "951", 1), "m", split(0), "add up to 1001"),
		Entry("a model that is not there", file, "x", split(0), `no model "x"`),
		Entry("other versions", file, "m", routing.Split{{Name: "v1"}, {Name: "v3", Weight: 1000}}, "by hand"),
		Entry("more versions", file, "m", append(split(0), routing.Version{Name: "v3"}), "not as many"),
		Entry("weights that do not add up", file, "m", routing.Split{{Name: "v1"}, {Name: "v2", Weight: 1}}, "with the new weights"),
		Entry("a weight that is not written", strings.Replace(file, "{name: v1, weight: 950}, {name: v2, weight: 50}", "{name: v1, weight: 1000}, {name: v2}", 1),
			"m", split(0), `write "weight: 0"`),
		Entry("a weight in quotes", strings.Replace(file, "950", `"950"`, 1), "m", split(0), "not a plain number"),
	)

	It("are those that are read back", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			s := split(rapid.IntRange(0, routing.SplitTotal).Draw(t, "v1"))
			got, err := config.WithSplit("mrgc.yaml", []byte(file), "m", s)
			if err != nil {
				t.Fatal(err)
			}
			cfg, err := config.Parse("mrgc.yaml", got)
			if err != nil || cfg.Splits()["m"].Of("x") != s.Of("x") || cfg.Models[1].Versions[0].Weight != s[0].Weight {
				t.Fatalf("%v: %s", err, got)
			}
		})
	})
})
