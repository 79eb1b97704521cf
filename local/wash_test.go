package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/parent/weights"
)

var _ = Describe("A cluster whose instances are washed", func() {
	It("has parents that start the enclaves, each with a place for the next one", func() {
		plain, byName := children(planFor()), children(planFor(func(o *Options) { o.Wash = true }))
		Expect(byName).To(HaveLen(len(plain) - len(planFor().instances())))
		for _, in := range planFor().instances() {
			Expect(byName).NotTo(HaveKey("enclave-" + in.id))
			parent := byName["parent-"+in.id]
			var command []string
			Expect(json.Unmarshal([]byte(flagOf(parent, "-enclave-command")), &command)).To(Succeed())
			enclave := process{args: command}
			Expect(flagOf(parent, "-wash-note")).To(Equal("/state/washes/" + in.id + ".json"))
			Expect(flagOf(enclave, "-listen")).To(And(Equal(flagOf(parent, "-enclave")), ContainSubstring("{place}")))
			Expect(flagOf(enclave, "-engine")).To(Equal(flagOf(parent, "-engine-relay")), "both dial the one relay")
			Expect(parent.env).To(ContainElements(
				"MRGC_IDENTITY_TOKEN="+secret+in.identity(identity.RoleParent).String(),
				"MRGC_ENCLAVE_IDENTITY_TOKEN="+secret+in.identity(identity.RoleEnclave).String()))
			for _, arg := range parent.args {
				Expect(arg).NotTo(ContainSubstring(secret))
			}
			Expect(flagOf(byName["guard-"+in.id], "--cache")).To(Equal("slots"))
		}
	})

	It("has an engine for each instance, however few cores there are", func() {
		byName := children(planFor(func(o *Options) { o.Wash, o.cores = true, 1 }))
		for i := range planFor().instances() {
			Expect(byName).To(HaveKey(fmt.Sprintf("engine-%d", i)))
		}
	})

	It("has each engine under a supervisor that its guard alone is told of, if washes are to restart it", func() {
		with := func(o *Options) { o.Wash, o.RestartEngine, o.cores = true, true, 1 }
		byName := children(planFor(with))
		for i, in := range planFor(with).instances() {
			engine := byName[fmt.Sprintf("engine-%d", i)]
			Expect(engine.args[1:4]).To(Equal([]string{"engine", "run", "--control"}))
			Expect(flagOf(byName["guard-"+in.id], "--engine-control")).To(Equal("unix:" + engine.args[4]))
		}
	})

	It("writes down what the model has to be", func(ctx context.Context) {
		p := planFor(func(o *Options) { o.Wash = true })
		p.stateDir = GinkgoT().TempDir()
		p.modelFile = filepath.Join(p.stateDir, "m.gguf")
		Expect(p.writeModelSums()).NotTo(Succeed())
		Expect(os.WriteFile(p.modelFile, []byte("GGUF"), 0o600)).To(Succeed())
		Expect(p.writeModelSums()).To(Succeed())
		check, err := weights.Open(p.modelSums(), 0)
		Expect(err).NotTo(HaveOccurred())
		_, err = check.Verify(ctx, false)
		Expect(err).NotTo(HaveOccurred())
		Expect(os.WriteFile(p.modelFile, []byte("GGUf"), 0o600)).To(Succeed())
		_, err = check.Verify(ctx, false)
		Expect(err).To(HaveOccurred())
	})

	It("fails when a part gets no identity", func() {
		refused := errors.New("refused")
		_, err := planFor(func(o *Options) { o.Wash = true }).processes(func(identity.ID) (string, error) { return "", refused })
		Expect(err).To(MatchError(refused))
	})

	DescribeTable("cannot be", func(o Options, because string) {
		o.BinDir, o.Wash = binDir(), true
		_, err := o.complete()
		Expect(err).To(MatchError(ContainSubstring(because)))
	},
		Entry("with an engine whose files are not known", Options{EngineURL: "http://127.0.0.1:1", ModelName: "m"}, "--engine-url exclude"),
		Entry("with an engine that has no cache", Options{Engine: EngineSim}, "needs --sim-profile"),
	)
})
