package cluster

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

// Network is a network namespace for each region, and this process's own, in which all
// else is, in between: a star. Each region has a loopback address that leads there from
// everywhere, 127.1.0.1 and so on, so that nothing has to be told that there are
// namespaces. Every packet between regions passes here, and can be dropped here.
type Network struct {
	addresses map[string]string // by region
}

// ownNetwork says that this process has a network namespace of its own.
const ownNetwork = "MRGC_BENCH_OWN_NETWORK"

// RunInOwnNetwork starts this program again, with these arguments, in network and mount
// namespaces of its own, unless it runs there, so that nothing of a network is left when it ends, however it
// ends. again says that it has done so, and how that ended.
func RunInOwnNetwork(args ...string) (again bool, err error) {
	if os.Getenv(ownNetwork) != "" {
		return false, nil
	}
	self, err := os.Executable()
	if err != nil {
		return true, err
	}
	cmd := exec.Command(self, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), ownNetwork+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGTERM,
	}
	signals := make(chan os.Signal, 1) // a terminal's go to both; it is waited for here
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return true, fmt.Errorf("a network namespace: %w: run as root", err)
	}
	go func() {
		for s := range signals {
			if s == syscall.SIGTERM {
				_ = cmd.Process.Signal(s) // it may have ended
			}
		}
	}()
	return true, cmd.Wait()
}

// NewNetwork makes the namespaces, within [RunInOwnNetwork].
func NewNetwork(regions ...string) (*Network, error) {
	if os.Getenv(ownNetwork) == "" {
		return nil, errors.New("a network is made in namespaces of its own")
	}
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		return nil, err
	}
	if err := syscall.Mount("mrgc", "/run/netns", "tmpfs", 0, ""); err != nil { // ours alone: so is the mount namespace
		return nil, fmt.Errorf("/run/netns: %w", err)
	}
	n := &Network{addresses: map[string]string{}}
	for i, region := range regions {
		n.addresses[region] = fmt.Sprintf("127.%d.0.1", i+1)
	}
	// The kernel takes all of 127.0.0.0/8 for its own, and lets none of it out.
	script := `sysctl -qw net.ipv4.conf.all.route_localnet=1 net.ipv4.ip_forward=1
ip link set lo up
ip route del local 127.0.0.0/8 dev lo table local
ip route replace local 127.0.0.1/32 dev lo table local
`
	for region, address := range n.addresses {
		script += strings.NewReplacer("REGION", region, "ADDRESS", address).Replace(`
ip netns add REGION
ip link add REGION type veth peer name uplink netns REGION
ip link set REGION up
ip route add ADDRESS/32 dev REGION src 127.0.0.1
ip netns exec REGION sysctl -qw net.ipv4.conf.all.route_localnet=1
ip -n REGION link set lo up
ip -n REGION addr del 127.0.0.1/8 dev lo
ip -n REGION addr add ADDRESS/32 dev lo
ip -n REGION link set uplink up
ip -n REGION route add 127.0.0.0/8 via 127.0.0.1 dev uplink onlink src ADDRESS
`)
	}
	return n, run("sh", "-ec", script)
}

// Arguments are what `mrgc up` is told of the network.
func (n *Network) Arguments() (args []string) {
	for _, region := range slices.Sorted(maps.Keys(n.addresses)) {
		args = append(args, "--region-network", region+"="+region+"@"+n.addresses[region])
	}
	return args
}

// Cut has every packet between two regions dropped, without a word to anyone.
func (n *Network) Cut(a, b string) error { return n.rule("add", a, b) }

// Heal ends a cut.
func (n *Network) Heal(a, b string) error { return n.rule("del", a, b) }

func (n *Network) rule(do, a, b string) (err error) {
	for _, way := range [][2]string{{a, b}, {b, a}} {
		err = errors.Join(err, run("ip", "rule", do, "pref", "10", "from", n.addresses[way[0]], "to", n.addresses[way[1]], "blackhole"))
	}
	return err
}

func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("network of namespaces, which takes iproute2 and root: %w: %s", err, out)
	}
	return nil
}
