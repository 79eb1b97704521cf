package local

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/config"
	"github.com/mrgc/mrgc/standin/devca"
	"github.com/mrgc/mrgc/standin/softnsm"
)

var _ = Describe("A state directory", func() {
	var state string
	BeforeEach(func() { state = filepath.Join(GinkgoT().TempDir(), "state") })

	It("is one cluster's at a time", func() {
		unlock, err := lockState(state)
		Expect(err).NotTo(HaveOccurred())
		_, err = lockState(state)
		Expect(err).To(MatchError(And(ContainSubstring("a cluster is up in "+state), ContainSubstring("--state-dir"))))
		unlock()
		unlock, err = lockState(state)
		Expect(err).NotTo(HaveOccurred())
		unlock()
	})

	It("is its owner's alone", func() {
		unlock, err := lockState(state)
		Expect(err).NotTo(HaveOccurred())
		defer unlock()
		info, err := os.Stat(state)
		Expect(err).NotTo(HaveOccurred())
		Expect(info.Mode().Perm()).To(Equal(os.FileMode(0o700)))
	})

	It("must be one that can be made", func() {
		Expect(os.WriteFile(state, nil, 0o600)).To(Succeed())
		_, err := lockState(state)
		Expect(err).To(MatchError(ContainSubstring("state directory")))
	})
})

var _ = Describe("A run directory", func() {
	var state string
	BeforeEach(func() { state = GinkgoT().TempDir() })

	It("is its owner's alone, and goes", func() {
		dir, remove, err := makeRunDir(state)
		Expect(err).NotTo(HaveOccurred())
		info, err := os.Stat(dir)
		Expect(err).NotTo(HaveOccurred())
		Expect(info.Mode().Perm()).To(Equal(os.FileMode(0o700)))
		Expect(os.Readlink(filepath.Join(state, "run"))).To(Equal(dir))
		Expect(remove()).To(Succeed())
		Expect(dir).NotTo(BeADirectory())
		Expect(os.ReadDir(state)).To(BeEmpty())
	})

	It("takes the place of one that a killed cluster left", func() {
		old, _, err := makeRunDir(state)
		Expect(err).NotTo(HaveOccurred())
		Expect(os.WriteFile(filepath.Join(old, "ca.sock"), nil, 0o600)).To(Succeed())
		fresh, remove, err := makeRunDir(state)
		Expect(err).NotTo(HaveOccurred())
		Expect(old).NotTo(BeADirectory())
		Expect(fresh).To(BeADirectory())
		Expect(remove()).To(Succeed())
	})

	It("never removes a directory that is not one", func() {
		other := filepath.Join(GinkgoT().TempDir(), "mrgc-sources")
		Expect(os.Mkdir(other, 0o700)).To(Succeed())
		Expect(os.Symlink(other, filepath.Join(state, "run"))).To(Succeed())
		_, remove, err := makeRunDir(state)
		Expect(err).NotTo(HaveOccurred())
		Expect(other).To(BeADirectory())
		Expect(remove()).To(Succeed())
	})
})

var _ = Describe("Ports", func() {
	It("are free, and all different", func() {
		p := newPorts()
		seen := map[string]bool{}
		for range 50 {
			address, err := p.draw()
			Expect(err).NotTo(HaveOccurred())
			Expect(seen).NotTo(HaveKey(address))
			seen[address] = true
			Expect(free(address)).To(Succeed())
		}
	})

	It("that are taken are passed over", func() {
		p := newPorts()
		first, err := p.draw()
		Expect(err).NotTo(HaveOccurred())
		taken, err := net.Listen("tcp", first)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(taken.Close)
		_, port, err := net.SplitHostPort(first)
		Expect(err).NotTo(HaveOccurred())
		p.next, err = strconv.Atoi(port)
		Expect(err).NotTo(HaveOccurred())
		Expect(p.draw()).NotTo(Equal(first))
	})

	It("begin again at the first one after the last", func() {
		p := &ports{next: lastPort}
		for range 3 {
			_, err := p.draw()
			Expect(err).NotTo(HaveOccurred())
		}
		Expect(p.next).To(And(BeNumerically(">", firstPort), BeNumerically("<", lastPort)))
	})

	It("that a person asks for are used, or an error with a hint", func() {
		p := newPorts()
		taken, err := net.Listen("tcp", "127.0.0.1:0")
		Expect(err).NotTo(HaveOccurred())
		port := taken.Addr().(*net.TCPAddr).Port
		_, err = p.tenantPort(port)
		Expect(err).To(MatchError(And(ContainSubstring("is taken"), ContainSubstring("--port"))))
		Expect(taken.Close()).To(Succeed())
		Expect(p.tenantPort(port)).To(Equal("127.0.0.1:" + strconv.Itoa(port)))
		drawn, err := p.tenantPort(0)
		Expect(err).NotTo(HaveOccurred())
		Expect(free(drawn)).To(Succeed())
	})
})

var _ = Describe("The files of a cluster", func() {
	var (
		p    *plan
		ca   *devca.Authority
		root *softnsm.Root
	)
	BeforeEach(func() {
		state := GinkgoT().TempDir()
		Expect(os.Mkdir(filepath.Join(state, "logs"), 0o700)).To(Succeed())
		o := Options{Regions: []string{"use1"}, Instances: 1, Routers: 2, Engine: EngineSim, ModelName: "smol", StateDir: state, BinDir: binDir()}
		var err error
		p, err = newPlan(o, GinkgoT().TempDir(), "127.0.0.1:8400", counting())
		Expect(err).NotTo(HaveOccurred())
		p.envoy = "true" // finds nothing wrong
		ca, err = devca.New(time.Now())
		Expect(err).NotTo(HaveOccurred())
		root, err = softnsm.NewRoot(time.Now())
		Expect(err).NotTo(HaveOccurred())
	})

	It("are their owner's alone, and hold no API key", func() {
		key, err := p.writeFiles(context.Background(), ca, root)
		Expect(err).NotTo(HaveOccurred())
		Expect(key).To(HavePrefix("mrgc-dev-"))
		for _, dir := range []string{p.stateDir, p.runDir} {
			Expect(filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
				if err != nil || !entry.Type().IsRegular() {
					return err
				}
				info, err := entry.Info()
				Expect(err).NotTo(HaveOccurred())
				Expect(info.Mode().Perm()).To(Equal(os.FileMode(0o600)), path)
				content, err := os.ReadFile(path)
				Expect(err).NotTo(HaveOccurred())
				Expect(string(content)).NotTo(ContainSubstring(key), path)
				return nil
			})).To(Succeed())
		}
	})

	It("of an earlier start are gone", func() {
		stale := []string{p.envFile(), p.store, p.store + "-wal", config.RollbackRecord(p.config), filepath.Join(p.stateDir, "logs", "connect.log"), filepath.Join(p.stateDir, "washes", "use1-0.json")}
		Expect(os.MkdirAll(filepath.Join(p.stateDir, "washes"), 0o700)).To(Succeed())
		for _, path := range stale {
			Expect(os.WriteFile(path, []byte("stale"), 0o600)).To(Succeed())
		}
		_, err := p.writeFiles(context.Background(), ca, root)
		Expect(err).NotTo(HaveOccurred())
		for _, path := range stale {
			Expect(path).NotTo(BeAnExistingFile())
		}
	})

	It("are refused when Envoy refuses its own", func() {
		p.envoy = "false"
		_, err := p.writeFiles(context.Background(), ca, root)
		Expect(err).To(HaveOccurred())
	})

	It("include what a shell needs, once all is healthy", func() {
		Expect(p.writeEnv("mrgc-dev-key")).To(Succeed())
		content, err := os.ReadFile(p.envFile())
		Expect(err).NotTo(HaveOccurred())
		Expect(string(content)).To(ContainSubstring("export OPENAI_API_KEY=mrgc-dev-key\n"))
		Expect(p.removeEnv()).To(Succeed())
		Expect(p.removeEnv()).To(Succeed())
		Expect(p.envFile()).NotTo(BeAnExistingFile())
	})
})

var _ = Describe("Waiting for a listener", func() {
	It("ends when someone listens, and does not keep anyone from it", func(ctx SpecContext) {
		address, err := newPorts().draw()
		Expect(err).NotTo(HaveOccurred())
		over := make(chan struct{})
		go func() { defer close(over); awaitListener(ctx, address) }()
		Consistently(over, "30ms").ShouldNot(BeClosed())
		l, err := net.Listen("tcp", address)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(l.Close)
		Eventually(over).Should(BeClosed())
	})

	It("ends when it is given up, or there is nothing to wait for", func() {
		awaitListener(context.Background(), "")
		given, up := context.WithCancel(context.Background())
		up()
		awaitListener(given, "127.0.0.1:1")
	})
})
