// Package systemd_test holds what the units claim against systemd's own tools.
package systemd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

func TestSystemd(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "systemd")
}

// tool is one of systemd's, where the machine has it.
func tool(name string) string {
	path, err := exec.LookPath(name)
	if err != nil {
		Skip(name + " is not on this machine")
	}
	return path
}

// settings are those of a unit's [Service], by name.
func settings(unit string) map[string][]string {
	GinkgoHelper()
	content, err := os.ReadFile(unit)
	Expect(err).NotTo(HaveOccurred())
	_, service, found := strings.Cut(string(content), "[Service]\n")
	Expect(found).To(BeTrue())
	service, _, _ = strings.Cut(service, "\n[")
	all := map[string][]string{}
	for line := range strings.Lines(service) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(name, "#") {
			all[name] = append(all[name], value)
		}
	}
	return all
}

var _ = Describe("The units", func() {
	It("are those that the documentation gives scores of", func() {
		Expect(filepath.Glob("*.service")).To(ConsistOf("mrgc-parent.service", "mrgc-guard.service", "mrgc-engine.service"))
	})

	DescribeTable("are as little exposed as the documentation says", func(ctx SpecContext, unit, drop string) {
		analyze := tool("systemd-analyze")
		path := filepath.Join(GinkgoT().TempDir(), unit)
		content, err := os.ReadFile(unit)
		Expect(err).NotTo(HaveOccurred())
		row := unit
		if drop != "" {
			more, err := os.ReadFile(drop)
			Expect(err).NotTo(HaveOccurred())
			_, more2, _ := strings.Cut(string(more), "[Service]\n")
			content = []byte(strings.Replace(string(content), "\n[Install]", "\n"+more2+"\n[Install]", 1))
			row += " + " + drop
		}
		Expect(os.WriteFile(path, content, 0o600)).To(Succeed())
		output, err := exec.CommandContext(ctx, analyze, "security", "--offline=true", path).CombinedOutput()
		Expect(err).NotTo(HaveOccurred(), "%s", output)
		score := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`).FindSubmatch(output)
		Expect(score).NotTo(BeNil(), "%s", output)
		got, err := strconv.ParseFloat(string(score[1]), 64)
		Expect(err).NotTo(HaveOccurred())

		documented, err := os.ReadFile(filepath.Join("..", "docs", "isolation.md"))
		Expect(err).NotTo(HaveOccurred())
		said := regexp.MustCompile(`(?m)^\| ` + regexp.QuoteMeta("`"+strings.ReplaceAll(row, " + ", "` + `")+"`") + ` \|.*\| ([0-9.]+) \|$`).FindSubmatch(documented)
		Expect(said).NotTo(BeNil(), "docs/isolation.md has a row of %s", row)
		want, err := strconv.ParseFloat(string(said[1]), 64)
		Expect(err).NotTo(HaveOccurred())
		Expect(got).To(BeNumerically("<=", want))
		AddReportEntry(row, string(score[1]))
	},
		Entry(nil, "mrgc-parent.service", ""), Entry(nil, "mrgc-guard.service", ""), Entry(nil, "mrgc-engine.service", ""),
		Entry(nil, "mrgc-engine.service", "vllm.conf"), Entry(nil, "mrgc-guard.service", "nitrotpm.conf"), Entry(nil, "mrgc-parent.service", "nitro.conf"),
	)

	DescribeTable("are what systemd can read", func(ctx SpecContext, unit string) {
		analyze := tool("systemd-analyze")
		content, err := os.ReadFile(unit)
		Expect(err).NotTo(HaveOccurred())
		path := filepath.Join(GinkgoT().TempDir(), unit)
		known := regexp.MustCompile(`(?m)^ExecStart=\S+`).ReplaceAll(content, []byte("ExecStart=/bin/true")) // ours is not installed here
		Expect(os.WriteFile(path, known, 0o600)).To(Succeed())
		output, err := exec.CommandContext(ctx, analyze, "verify", path).CombinedOutput()
		Expect(err).NotTo(HaveOccurred(), "%s", output)
		Expect(string(output)).NotTo(ContainSubstring(path), "no warning of it")
	},
		Entry(nil, "mrgc-parent.service"), Entry(nil, "mrgc-guard.service"), Entry(nil, "mrgc-engine.service"),
	)

	It("run each part as a user of its own, and only the guard's reaches the engine's socket", func(ctx SpecContext) {
		root := GinkgoT().TempDir()
		Expect(os.Mkdir(filepath.Join(root, "etc"), 0o700)).To(Succeed())
		conf, err := filepath.Abs("mrgc.sysusers.conf")
		Expect(err).NotTo(HaveOccurred())
		output, err := exec.CommandContext(ctx, tool("systemd-sysusers"), "--root="+root, conf).CombinedOutput()
		Expect(err).NotTo(HaveOccurred(), "%s", output)
		passwd, err := os.ReadFile(filepath.Join(root, "etc", "passwd"))
		Expect(err).NotTo(HaveOccurred())
		group, err := os.ReadFile(filepath.Join(root, "etc", "group"))
		Expect(err).NotTo(HaveOccurred())
		for _, part := range []string{"parent", "guard", "engine"} {
			user := "mrgc-" + part
			Expect(string(passwd)).To(MatchRegexp(`(?m)^` + user + `:.*/nologin$`))
			Expect(settings(user + ".service")).To(And(HaveKeyWithValue("User", []string{user}), HaveKeyWithValue("Group", []string{user}), Not(HaveKey("SupplementaryGroups"))))
		}
		Expect(string(group)).To(And(
			MatchRegexp(`(?m)^mrgc-engine:x:\d+:mrgc-guard$`), MatchRegexp(`(?m)^mrgc-parent:x:\d+:$`), MatchRegexp(`(?m)^mrgc-guard:x:\d+:$`)))
		Expect(settings("mrgc-engine.service")).To(And(
			HaveKeyWithValue("PrivateNetwork", []string{"yes"}), HaveKeyWithValue("RuntimeDirectoryMode", []string{"0710"}), HaveKeyWithValue("LimitCORE", []string{"0"})))
	})
})
