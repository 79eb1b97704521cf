package local

import (
	"os"
	"path/filepath"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

// binDir is a directory with programs that nobody will run.
func binDir() string {
	GinkgoHelper()
	dir := GinkgoT().TempDir()
	for _, program := range []string{"mrgc", "mrgc-parent", "mrgc-enclave"} {
		Expect(os.WriteFile(filepath.Join(dir, program), []byte(program), 0o600)).To(Succeed())
	}
	return dir
}

func modelFile(name string) string {
	GinkgoHelper()
	path := filepath.Join(GinkgoT().TempDir(), name)
	Expect(os.WriteFile(path, []byte("GGUF"), 0o600)).To(Succeed())
	return path
}

var _ = Describe("Options", func() {
	It("have defaults", func() {
		o, err := Options{BinDir: binDir()}.complete()
		Expect(err).NotTo(HaveOccurred())
		Expect(o.Regions).To(Equal([]string{"use1", "use2", "usw2"}))
		Expect(o.Instances).To(Equal(2))
		Expect(o.Routers).To(Equal(2))
		Expect(o.Engine).To(Equal(EngineLlama))
		Expect(o.ModelName).To(Equal(defaultModelName))
		Expect(o.cores).To(BeNumerically(">", 0))
		Expect(o.Out).NotTo(BeNil())
	})

	It("are absolute paths in the end", func() {
		o, err := Options{BinDir: binDir(), StateDir: "state", ToolsDir: "tools"}.complete()
		Expect(err).NotTo(HaveOccurred())
		here, err := os.Getwd()
		Expect(err).NotTo(HaveOccurred())
		Expect(o.StateDir).To(Equal(filepath.Join(here, "state")))
		Expect(o.ToolsDir).To(Equal(filepath.Join(here, "tools")))
		Expect(o.Model).To(BeEmpty())
	})

	It("keep what was chosen", func() {
		o, err := Options{
			BinDir: binDir(), Regions: []string{"usw2"}, Instances: 20, Engine: EngineSim, ModelName: "mine", Port: 65535,
		}.complete()
		Expect(err).NotTo(HaveOccurred())
		Expect(o.Regions).To(Equal([]string{"usw2"}))
		Expect(o.Instances).To(Equal(20))
		Expect(o.Engine).To(Equal(EngineSim))
		Expect(o.ModelName).To(Equal("mine"))
		Expect(o.Port).To(Equal(65535))
	})

	It("name a model after its file", func() {
		o, err := Options{BinDir: binDir(), Model: modelFile("Qwen3 4B (Q4).gguf")}.complete()
		Expect(err).NotTo(HaveOccurred())
		Expect(o.ModelName).To(Equal("qwen3-4b-q4-"))
	})

	DescribeTable("know how many requests a simulator runs at once", func(sim SimOptions, slots int) {
		o, err := Options{BinDir: binDir(), Engine: EngineSim, Sim: sim}.complete()
		Expect(err).NotTo(HaveOccurred())
		Expect(o.Sim.Slots).To(Equal(slots))
	},
		Entry("as ever", SimOptions{}, 4),
		Entry("as the profile says, but no more than are let in", SimOptions{Profile: "h100-llama-8b"}, 64),
		Entry("as was chosen", SimOptions{Profile: "a100", Slots: 8}, 8),
		Entry("as was chosen, without a profile", SimOptions{Slots: 9}, 9),
	)

	It("take any instance's faults", func() {
		_, err := Options{BinDir: binDir(), Engine: EngineSim, Sim: SimOptions{
			Slow: map[string]string{"use1-0": "2", "usw2-1": "0.5"}, Fail: map[string]string{"use2-1": "1"},
		}}.complete()
		Expect(err).NotTo(HaveOccurred())
	})

	DescribeTable("refuse", func(change func(*Options), reason string) {
		o := Options{BinDir: binDir()}
		change(&o)
		_, err := o.complete()
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("an unknown region", func(o *Options) { o.Regions = []string{"use1", "euw1"} }, "--regions use1,euw1"),
		Entry("a region twice", func(o *Options) { o.Regions = []string{"use1", "use1"} }, "each once"),
		Entry("a negative number of instances", func(o *Options) { o.Instances = -1 }, "--instances -1"),
		Entry("too many instances", func(o *Options) { o.Instances = 21 }, "want 1 to 20"),
		Entry("a negative number of routers", func(o *Options) { o.Routers = -1 }, "--routers -1"),
		Entry("too many routers", func(o *Options) { o.Routers = 5 }, "want 1 to 4"),
		Entry("an unknown engine", func(o *Options) { o.Engine = "vllm" }, "--engine vllm"),
		Entry("a negative port", func(o *Options) { o.Port = -1 }, "--port -1"),
		Entry("a port that is none", func(o *Options) { o.Port = 65536 }, "--port 65536"),
		Entry("a model that is not there", func(o *Options) { o.Model = "/nonexistent/m.gguf" }, "--model"),
		Entry("a model that is no file", func(o *Options) { o.Model = os.TempDir() }, "not a file"),
		Entry("a model for the simulator", func(o *Options) { o.Engine, o.Model = EngineSim, modelFile("m.gguf") }, "no meaning with --engine sim"),
		Entry("an engine and a model", func(o *Options) { o.EngineURL, o.Model = "http://127.0.0.1:8000", modelFile("m.gguf") }, "exclude each other"),
		Entry("an engine whose model has no name", func(o *Options) { o.EngineURL = "http://127.0.0.1:8000" }, "needs --model-name"),
		Entry("an engine over TLS", func(o *Options) { o.EngineURL, o.ModelName = "https://127.0.0.1:8000", "m" }, "want http://host:port"),
		Entry("an engine's path", func(o *Options) { o.EngineURL, o.ModelName = "http://127.0.0.1:8000/v1", "m" }, "want http://host:port"),
		Entry("an unknown policy", func(o *Options) { o.Policy = "random" }, `--policy: policy "random": want gate-then-load`),
		Entry("more versions than a region has instances", func(o *Options) { o.Versions = []string{"1", "2", "3"} }, "--versions 1,2,3: want at most one for each of the 2"),
		Entry("a version twice", func(o *Options) { o.Versions = []string{"1", "1"} }, "--versions 1,1: want each once"),
		Entry("a version that is none", func(o *Options) { o.Versions = []string{"a b"} }, "--versions: "),
		Entry("an unknown profile", func(o *Options) { o.Engine, o.Sim.Profile = EngineSim, "h200" },
			`--sim-profile: profile "h200": there are h100-llama-8b and a100-llama-8b`),
		Entry("a profile for llama.cpp", func(o *Options) { o.Sim.Profile = "a100" }, "with --engine sim alone"),
		Entry("a profile for an engine that runs already", func(o *Options) {
			o.Engine, o.EngineURL, o.ModelName, o.Sim.Profile = EngineSim, "http://127.0.0.1:8000", "m", "a100"
		}, "with --engine sim alone"),
		Entry("a negative number of slots", func(o *Options) { o.Engine, o.Sim.Slots = EngineSim, -1 }, "--sim-slots -1"),
		Entry("engines that washes restart, without washes", func(o *Options) { o.RestartEngine = true }, "it needs --wash"),
		Entry("a cache without a profile", func(o *Options) { o.Engine, o.Sim.KVBlocks = EngineSim, 100 }, "needs --sim-profile"),
		Entry("faults of an instance that is not there", func(o *Options) { o.Engine, o.Sim.Slow = EngineSim, map[string]string{"use1-2": "2"} },
			"--sim-slow use1-2: there is no such instance"),
		Entry("faults of a region that is not there", func(o *Options) { o.Engine, o.Sim.Fail = EngineSim, map[string]string{"euw1-0": "1"} },
			"--sim-fail euw1-0: there is no such instance"),
		Entry("faults of an instance by another name", func(o *Options) { o.Engine, o.Sim.Fail = EngineSim, map[string]string{"use1-00": "1"} },
			"--sim-fail use1-00: there is no such instance"),
		Entry("a slowness that is none", func(o *Options) { o.Engine, o.Sim.Slow = EngineSim, map[string]string{"use1-0": "fast"} },
			"--sim-slow use1-0=fast: want a number above 0"),
		Entry("more failures than there are requests", func(o *Options) { o.Engine, o.Sim.Fail = EngineSim, map[string]string{"use1-0": "1.1"} },
			"at most 1"),
		Entry("a folder that lacks a program", func(o *Options) { Expect(os.Remove(filepath.Join(o.BinDir, "mrgc-enclave"))).To(Succeed()) },
			"mrgc-enclave is not beside mrgc"),
	)
})
