package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/fleet/dynamodb/dynamodblocal"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/standin/softnsm"
)

// releases is a cluster whose instances take up another build of the enclave.
type releases struct {
	*cluster
	program string // mrgc-enclave, where instances start it from
	builds  [][]byte
	known   []attest.Release // of builds, by their order
}

// startReleases runs a cluster from a copy of its programs, with so many builds of the
// enclave, of which it runs the first. They differ by what comes after the program in
// its file, which is measured like all of it.
func startReleases(builds int, args ...string) *releases {
	GinkgoHelper()
	dir := GinkgoT().TempDir()
	for _, program := range []string{"mrgc", "mrgc-parent", "mrgc-enclave"} {
		Expect(exec.Command("cp", filepath.Join(root(), "bin", program), dir).Run()).To(Succeed())
	}
	r := &releases{program: filepath.Join(dir, "mrgc-enclave"), cluster: &cluster{stateDir: GinkgoT().TempDir()}}
	program, err := os.ReadFile(r.program)
	Expect(err).NotTo(HaveOccurred())
	up := upCommand(r.stateDir, args...)
	r.start(exec.Command(filepath.Join(dir, "mrgc"), up[1:]...))
	r.await()

	first, err := os.ReadFile(r.env()["MRGC_RELEASES"])
	Expect(err).NotTo(HaveOccurred())
	r.known, err = attest.ParseReleases(first)
	Expect(err).NotTo(HaveOccurred())
	Expect(r.known).To(HaveLen(1))
	r.builds = [][]byte{program}
	for i := 1; i < builds; i++ {
		r.builds = append(r.builds, fmt.Appendf(program[:len(program):len(program)], "build %d", i))
		r.lay(i)
		pcrs, err := softnsm.Measure(r.program)
		Expect(err).NotTo(HaveOccurred())
		r.known = append(r.known, attest.Release{Version: r.known[0].Version + uint64(i), Name: fmt.Sprintf("build %d", i), PCRs: pcrs})
	}
	r.lay(0)
	return r
}

// lay puts a build where instances start the enclave from. What runs goes on.
func (r *releases) lay(build int) {
	GinkgoHelper()
	Expect(os.WriteFile(r.program+".new", r.builds[build], 0o700)).To(Succeed())
	Expect(os.Rename(r.program+".new", r.program)).To(Succeed())
}

// sign has all trust the builds up to one, and none before another.
func (r *releases) sign(upTo, from int) {
	GinkgoHelper()
	content, err := json.Marshal(r.known[:upTo+1])
	Expect(err).NotTo(HaveOccurred())
	path := filepath.Join(r.stateDir, "signed-next.json")
	Expect(os.WriteFile(path, content, 0o600)).To(Succeed())
	r.mrgc("releases", "sign", "--key", filepath.Join(r.stateDir, "releases-signing.key"), "--releases", path,
		"--out", filepath.Join(r.stateDir, "releases.signed.json"), "--min-version", fmt.Sprint(r.known[from].Version))
}

// runs gives the build that routers have seen each instance run: its number, or what is
// wrong with it.
func (r *releases) runs(ctx SpecContext) func() map[string]string {
	return func() map[string]string {
		GinkgoHelper()
		var page struct {
			Instances []struct {
				Instance, PCR0, Error string
				Trusted               bool
			}
		}
		Expect(json.Unmarshal([]byte(get(ctx, r.env()["MRGC_ADMIN_USE1"]+"/releases")), &page)).To(Succeed())
		seen := map[string]string{}
		for _, in := range page.Instances {
			seen[in.Instance] = in.Error
			for i, known := range r.known {
				if in.Trusted && known.PCRs[0].String() == in.PCR0 {
					seen[in.Instance] = fmt.Sprint(i)
				}
			}
		}
		return seen
	}
}

// putPolicies has KMS release to the builds that are trusted now: what comes after the
// manifest and before the instances (docs/kms.md).
func (r *releases) putPolicies(ctx SpecContext) {
	GinkgoHelper()
	signed := []string{"keys", "policy", "--releases", filepath.Join(r.stateDir, "releases.signed.json"), "--releases-key", filepath.Join(r.stateDir, "releases-signing.pub")}
	for file, of := range map[string][]string{"kms-policy.json": {"--tenant"}, "fleet-kms-policy.json": {"--fleet"}} {
		path := filepath.Join(r.stateDir, file)
		before, err := os.ReadFile(path)
		Expect(err).NotTo(HaveOccurred())
		var policy struct {
			Statement []struct {
				Sid       string
				Principal any
				Condition map[string]map[string][]string
			}
		}
		Expect(json.Unmarshal(before, &policy)).To(Succeed())
		args := append([]string{}, signed...)
		for _, st := range policy.Statement {
			named, ok := st.Principal.(map[string]any)
			if !ok {
				continue
			}
			flag := map[string]string{"Manage": "--admin", "MakeDataKeys": "--client"}[st.Sid]
			if flag == "" {
				flag = "--cluster-role"
				for _, values := range st.Condition["StringEquals"] {
					of = append(of[:1:1], values[0])
				}
			}
			if !slices.Contains(args, flag) {
				args = append(args, flag, named["AWS"].([]any)[0].(string))
			}
		}
		Expect(os.WriteFile(path+".new", []byte(r.mrgc(append(args, of...)...)), 0o600)).To(Succeed())
		Expect(os.Rename(path+".new", path)).To(Succeed())
	}
}

var _ = Describe("A version of the enclave", func() {
	It("is rolled out, back and out again under requests to a fleet's keys, and by data keys of KMS, without a failed one", func(ctx SpecContext) {
		if missing := dynamodblocal.Missing(); missing != "" {
			Skip(missing)
		}
		table, err := dynamodblocal.Start(ctx, dynamodblocal.Config{Log: GinkgoWriter})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(table.Kill)
		r := startReleases(2, "--regions", "use1", "--instances", "2", "--routers", "1", "--wash", "--ask=false", "--engine", "sim", "--sim-profile", "h100-llama-8b",
			"--fleet-dynamodb", table.Endpoint())
		Eventually(ctx, func() *seal.Recipient { return r.fleetKey(ctx) }, "30s", "200ms").ShouldNot(BeNil())
		Eventually(ctx, r.runs(ctx), "70s", "200ms").Should(Equal(map[string]string{"use1-0": "0", "use1-1": "0"}))

		By("a manifest that trusts both, then the keys' policies, then the instances")
		r.sign(1, 0)
		r.putPolicies(ctx)
		trust := []string{"--releases", filepath.Join(r.stateDir, "releases.signed.json"), "--releases-key", filepath.Join(r.stateDir, "releases-signing.pub")}
		sent := map[string]*requests{
			"a fleet's keys": r.sendBy(1, r.connect(ctx, append(trust, "--recipient-types", "fleet")...)),
			"data keys":      r.sendBy(1, r.connectWithKey(ctx, "use1", trust...)),
		}
		for _, s := range sent {
			DeferCleanup(s.cancel)
		}
		for _, build := range []int{1, 0, 1} {
			before := map[string]int{}
			for name, s := range sent {
				before[name] = s.count()
			}
			r.lay(build)
			for _, instance := range []string{"use1-0", "use1-1"} {
				w := r.wash(ctx, instance)
				Expect(w.Passed).To(BeTrue(), w.Reason)
			}
			Eventually(ctx, r.runs(ctx), "70s", "200ms").Should(Equal(map[string]string{"use1-0": fmt.Sprint(build), "use1-1": fmt.Sprint(build)}))
			for name, s := range sent {
				Eventually(ctx, s.count, "30s").Should(BeNumerically(">", before[name]+10), name)
			}
		}
		for name, s := range sent {
			all := s.stop()
			var failed []string
			for _, one := range all {
				if one.failure != "" {
					failed = append(failed, one.failure)
				}
			}
			Expect(failed).To(BeEmpty(), name)
			AddReportEntry("releases", fmt.Sprintf("%d requests by %s, none failed", len(all), name))
		}
	}, NodeTimeout(6*time.Minute))

	It("is rolled out, back and out again by washing one instance after the other, without a failed request", func(ctx SpecContext) {
		r := startReleases(2, "--regions", "use1", "--instances", "2", "--routers", "1", "--wash", "--ask=false", "--engine", "sim", "--sim-profile", "h100-llama-8b")
		instances := []string{"use1-0", "use1-1"}
		sent := r.send(2)
		DeferCleanup(sent.cancel)
		roll := func(build int) {
			GinkgoHelper()
			before := sent.count()
			r.lay(build)
			for _, instance := range instances {
				w := r.wash(ctx, instance)
				Expect(w.Passed).To(BeTrue(), w.Reason)
			}
			want := map[string]string{"use1-0": fmt.Sprint(build), "use1-1": fmt.Sprint(build)}
			Eventually(ctx, r.runs(ctx), "70s", "200ms").Should(Equal(want), "routers look once a minute")
			Eventually(ctx, sent.count, "20s").Should(BeNumerically(">", before+50), "requests are served")
		}
		Eventually(ctx, r.runs(ctx), "70s", "200ms").Should(Equal(map[string]string{"use1-0": "0", "use1-1": "0"}))

		By("a manifest that trusts both, then the instances; and back, as long as the minimum has not been raised")
		r.sign(1, 0)
		roll(1)
		roll(0)
		roll(1)

		By("the minimum is raised: the old one is trusted by nobody any more")
		r.sign(1, 1)
		r.lay(0)
		w := r.wash(ctx, "use1-0")
		Expect(w.Passed).To(BeFalse())
		Expect(w.Reason).To(ContainSubstring("below the minimum version"))
		after := sent.count()
		Eventually(ctx, sent.count, "20s").Should(BeNumerically(">", after+50), "the other instance serves")

		all := sent.stop()
		for _, one := range all {
			Expect(one.failure).To(BeEmpty())
		}
		var took []time.Duration
		for _, one := range all {
			took = append(took, one.took)
		}
		AddReportEntry("releases", fmt.Sprintf("%d requests, none failed; p50 %s, p99 %s, slowest %s", len(took), percentile(took, 0.5), percentile(took, 0.99), percentile(took, 1)))
	}, NodeTimeout(5*time.Minute))
})
