package main

import (
	"os"
	"path/filepath"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

var _ = Describe("mrgc canary", func() {
	const file = `regions: [{name: use1, aws_region: us-east-1}]
models:
  - name: plain
  - name: m # of many
    versions:
      - {name: "1", weight: 1000}
      - {name: "2", weight: 0} # the new one
  - {name: three, versions: [{name: a, weight: 600}, {name: b, weight: 300}, {name: c, weight: 100}]}
`
	var path string
	canary := func(args ...string) result {
		GinkgoHelper()
		return mrgc(append(append([]string{"canary"}, args...), "--config", path)...)
	}
	content := func() string {
		GinkgoHelper()
		text, err := os.ReadFile(path)
		Expect(err).NotTo(HaveOccurred())
		return string(text)
	}
	BeforeEach(func() {
		path = filepath.Join(GinkgoT().TempDir(), "mrgc.yaml")
		Expect(os.WriteFile(path, []byte(file), 0o640)).To(Succeed())
	})

	It("moves requests to a version, all of them, and away from it", func() {
		for _, step := range []struct{ args, weights string }{
			{"set m 2 5%", "950 50"}, {"set m 2 125", "875 125"}, {"promote m 2", "0 1000"}, {"abort m 2", "1000 0"},
		} {
			got := canary(strings.Fields(step.args)...)
			Expect(got.err).NotTo(HaveOccurred(), step.args)
			weights := strings.Fields(step.weights)
			Expect(content()).To(Equal(strings.NewReplacer("weight: 1000", "weight: "+weights[0], "weight: 0", "weight: "+weights[1]).Replace(file)))
		}
		info, err := os.Stat(path)
		Expect(err).NotTo(HaveOccurred())
		Expect(info.Mode().Perm()).To(BeEquivalentTo(0o640))
		Expect(filepath.Glob(filepath.Join(filepath.Dir(path), ".*"))).To(BeEmpty())
	})

	It("lets the others share the rest as they did", func() {
		Expect(canary("set", "three", "c", "10%").err).NotTo(HaveOccurred())
		Expect(content()).To(Equal(file))
		Expect(canary("set", "three", "c", "400").err).NotTo(HaveOccurred())
		Expect(content()).To(ContainSubstring("{name: a, weight: 400}, {name: b, weight: 200}, {name: c, weight: 400}"))
	})

	It("shows what there is", func() {
		Expect(canary("status").stdout).To(Equal("MODEL  VERSION  SHARE\nm      1        100 %\nm      2        0 %, withdrawn\nthree  a        60 %\nthree  b        30 %\nthree  c        10 %\n"))
		Expect(canary("set", "m", "2", "2.5%", "-o", "json").stdout).To(ContainSubstring(`{
    "model": "m",
    "version": "2",
    "weight_per_mille": 25
  }`))
	})

	It("writes through a link, and leaves it one", func() {
		file := path
		path = filepath.Join(GinkgoT().TempDir(), "link.yaml")
		Expect(os.Symlink(file, path)).To(Succeed())
		Expect(canary("promote", "m", "2").err).NotTo(HaveOccurred())
		Expect(os.Readlink(path)).To(Equal(file))
		Expect(content()).To(ContainSubstring("weight: 0}\n      - {name: \"2\", weight: 1000}"))
	})

	DescribeTable("refuses, and changes nothing", func(command, reason string) {
		got := canary(strings.Fields(command)...)
		Expect(got.err).To(MatchError(ContainSubstring(reason)))
		Expect(content()).To(Equal(file))
		Expect(got.stdout).To(BeEmpty())
	},
		Entry("a model without versions", "promote plain 1", `no model "plain" with versions`),
		Entry("a model that is not there", "promote x 1", `no model "x" with versions`),
		Entry("a version that is not there", "promote m 3", `version "3" is not listed`),
		Entry("more than all", "set m 2 1001", `weight "1001"`),
		Entry("more than all, in percent", "set m 2 100.1%", `weight "100.1%"`),
		Entry("finer than it can be", "set m 2 0.05%", `weight "0.05%"`),
		Entry("no number", "set m 2 some", `weight "some"`),
		Entry("no number of percent", "set m 2 NaN%", `weight "NaN%"`),
		Entry("another output", "set m 2 5 -o yaml", `--output "yaml"`),
		Entry("a version that would be withdrawn by rounding", "set three a 999", "withdraws it"),
	)
})
