package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/mrgc/mrgc/extproc"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/peers"
)

const (
	// tellInterval is the least time between two messages to a peer, and what a
	// peer's picks are behind at most.
	tellInterval = 10 * time.Millisecond
	// tellBusy is the most while anything is in flight: a quarter of what a message
	// is believed for. A message that counts nothing may be lost, so that idle
	// routers say tellIdle apart that they are there.
	tellBusy = peers.ViewFor / 4
	tellIdle = 3 * peers.ViewFor / 4
	// tellAbroad is how often another region's routers are told, and tellAbroadBusy
	// when tenants with limits have used some of them.
	tellAbroad     = peerSilence / 3
	tellAbroadBusy = tellAbroad / 10
	// peerSilence is how long a peer may say nothing before its stream counts as
	// broken.
	peerSilence = 3 * peers.ViewFor
	// resolveInterval is how often the names of peers are looked up.
	resolveInterval = 5 * time.Second
	// maxPeers is how many addresses are followed. A region has a handful of
	// routers; more is a name that means something else.
	maxPeers = 32
)

// The service by which routers follow each other: streams of messages of package
// peers, each in a BytesValue. Those of one region follow all that the others have to
// say; those of another region what they have found out of versions on trial, and what
// tenants have used of their limits. It is private to one build and its next: who does not understand the other does without.
const peersService = "mrgc.peers.v1.Peers"

var (
	followStream = grpc.StreamDesc{StreamName: "Follow", ServerStreams: true, Handler: func(service any, stream grpc.ServerStream) error {
		return service.(*exchange).tell(stream)
	}}
	abroadStream = grpc.StreamDesc{StreamName: "FollowAbroad", ServerStreams: true, Handler: func(service any, stream grpc.ServerStream) error {
		return service.(*exchange).tellAbroad(stream)
	}}
	peersDesc = grpc.ServiceDesc{ServiceName: peersService, HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{followStream, abroadStream}}
)

// exchange is with the routers of a region: this one follows every other one, and so
// does each.
type exchange struct {
	names    []peerName  // of the goroutine of run
	want     identity.ID // every router's of the region
	follows  *grpc.StreamDesc
	learn    func(address string, m *peers.Message) (fromAnother bool)
	lose     func(address string) // the stream from it has broken off
	forget   func(address string)
	identity *identity.Source
	picker   *extproc.Picker
	judges   *judges
	log      *slog.Logger
	lookup   func(ctx context.Context, network, host string) ([]netip.Addr, error)
	interval time.Duration // between two times that names are looked up

	streams sync.WaitGroup
	open    map[string]context.CancelFunc // of the goroutine of run: by address

	mu    sync.Mutex
	state map[string]string // guarded by mu: by address, one of the three below
}

// States of a peer's address on the admin's page.
const (
	peerSilent    = "not heard"
	peerConnected = "connected"
	peerSelf      = "this router"
)

// peerName is "host:port": a host with several addresses is several peers.
type peerName struct {
	host string
	port uint16

	found []netip.Addr // when it was last looked up with success
	lost  bool         // which was not the last time
}

func parsePeers(texts []string) (names []peerName, err error) {
	for _, text := range texts {
		host, port, splitErr := net.SplitHostPort(text)
		number, portErr := strconv.ParseUint(port, 10, 16)
		if splitErr != nil || portErr != nil || host == "" || number == 0 {
			return nil, fmt.Errorf("peer %q: want host:port, of another router's gRPC port", text)
		}
		name := peerName{host: host, port: uint16(number)}
		if slices.ContainsFunc(names, func(n peerName) bool { return n.host == name.host && n.port == name.port }) {
			return nil, fmt.Errorf("peer %q is given twice", text)
		}
		names = append(names, name)
	}
	return names, nil
}

func newExchange(config *Config, picker *extproc.Picker, judges *judges, log *slog.Logger) (*exchange, error) {
	names, err := parsePeers(config.Peers)
	return &exchange{
		names: names, want: config.Identity.ID(), identity: config.Identity, picker: picker, judges: judges, log: log,
		follows: &followStream, lose: picker.Lose, forget: picker.Forget,
		learn: func(address string, m *peers.Message) bool {
			another := picker.Learn(address, m)
			if another {
				judges.learn(m)
			}
			return another
		},
		lookup: net.DefaultResolver.LookupNetIP, interval: resolveInterval,
		open: map[string]context.CancelFunc{}, state: map[string]string{},
	}, err
}

// newExchangeAbroad is with another region's routers, of which only what they have
// found out of versions on trial and what tenants have used is followed.
func newExchangeAbroad(config *Config, region fleet.Region, picker *extproc.Picker, judges *judges, log *slog.Logger) (*exchange, error) {
	if region == config.Region {
		return nil, fmt.Errorf("peers of region %q are given as another region's", region)
	}
	names, err := parsePeers(config.PeersAbroad[region])
	return &exchange{
		names: names, want: routerOf(region), identity: config.Identity, judges: judges, log: log.With("peers_of", string(region)),
		follows: &abroadStream, lose: func(string) {}, forget: func(string) {},
		learn: func(_ string, m *peers.Message) bool {
			picker.LearnAbroad(m)
			judges.learn(m)
			return true
		},
		lookup: net.DefaultResolver.LookupNetIP, interval: resolveInterval,
		open: map[string]context.CancelFunc{}, state: map[string]string{},
	}, err
}

// run follows whoever is found at the peers' names until ctx ends.
func (e *exchange) run(ctx context.Context) {
	defer e.streams.Wait()
	tick := time.NewTicker(e.interval)
	defer tick.Stop()
	for {
		e.update(ctx, e.resolve(ctx))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// resolve gives the addresses of all names. A name that cannot be looked up has
// those that it had.
func (e *exchange) resolve(ctx context.Context) (addresses []string) {
	for i := range e.names {
		name := &e.names[i]
		found, err := e.lookupName(ctx, name.host)
		switch {
		case err == nil:
			name.found, name.lost = found, false
		case !name.lost && ctx.Err() == nil:
			e.log.Warn("peer's name is not found; its last addresses stay, trying on", "peer", name.host, "error", err)
			name.lost = true
		}
		for _, ip := range name.found {
			addresses = append(addresses, netip.AddrPortFrom(ip.Unmap(), name.port).String())
		}
	}
	slices.Sort(addresses)
	addresses = slices.Compact(addresses)
	if len(addresses) > maxPeers {
		e.log.Error("peers have too many addresses; only the first are followed", "addresses", len(addresses), "followed", maxPeers)
		addresses = addresses[:maxPeers]
	}
	return addresses
}

func (e *exchange) lookupName(ctx context.Context, host string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, resolveInterval)
	defer cancel()
	return e.lookup(ctx, "ip", host)
}

// update follows these addresses and no others.
func (e *exchange) update(ctx context.Context, addresses []string) {
	for address, cancel := range e.open {
		if !slices.Contains(addresses, address) {
			cancel()
			delete(e.open, address)
		}
	}
	for _, address := range addresses {
		if _, ok := e.open[address]; ok {
			continue
		}
		streamCtx, cancel := context.WithCancel(ctx)
		e.open[address] = cancel
		e.set(address, peerSilent)
		e.streams.Go(func() { e.follow(streamCtx, address) })
	}
}

// follow learns from the router at an address until ctx ends, and forgets it.
func (e *exchange) follow(ctx context.Context, address string) {
	defer func() {
		<-ctx.Done() // also of this router itself, so that it is known as such
		e.forget(address)
		e.set(address, "")
	}()
	conn, err := dial(address, e.identity, e.want, peerSilence)
	if err != nil { // an address that has been parsed
		e.log.Error("peer cannot be followed", "peer", address, "error", err)
		return
	}
	defer func() { _ = conn.Close() }()
	keepOpen(ctx, func() (bool, error) { return e.listen(ctx, conn, address) }, func(err error) {
		e.log.Warn("peer is not heard; trying on", "peer", address, "error", err)
	})
}

// listen takes messages until the stream breaks, and says whether there was any.
// One that is not valid breaks it.
func (e *exchange) listen(ctx context.Context, conn *grpc.ClientConn, address string) (heard bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(peerSilence, func() { cancel(errSilent) })
	defer silent.Stop()
	defer func() {
		if errors.Is(err, errOwn) {
			e.set(address, peerSelf)
			return
		}
		e.lose(address)
		e.set(address, peerSilent)
		if errors.Is(context.Cause(ctx), errSilent) {
			err = fmt.Errorf("%w for %s", errSilent, peerSilence)
		}
	}()
	stream, err := conn.NewStream(ctx, e.follows, "/"+peersService+"/"+e.follows.StreamName, grpc.MaxCallRecvMsgSize(peers.MaxMessageBytes+16))
	if err != nil {
		return false, err
	}
	if err := errors.Join(stream.SendMsg(&emptypb.Empty{}), stream.CloseSend()); err != nil {
		return false, err
	}
	for {
		var raw wrapperspb.BytesValue
		if err := stream.RecvMsg(&raw); err != nil {
			return heard, err
		}
		message, err := peers.Decode(raw.GetValue())
		if err != nil {
			return heard, err
		}
		if !e.learn(address, message) {
			return heard, errOwn
		}
		if !heard {
			heard = true
			e.set(address, peerConnected)
		}
		silent.Reset(peerSilence)
	}
}

// tell has a peer follow this router: at each change, but for the first of
// several that come together at most every tellInterval, and when there is none
// every tellBusy or tellIdle.
func (e *exchange) tell(stream grpc.ServerStream) error {
	if err := stream.RecvMsg(&emptypb.Empty{}); err != nil {
		return err
	}
	var told extproc.Told
	return tellAll(stream, func() (*peers.Message, <-chan struct{}, time.Duration) {
		changed := e.picker.Changed()
		message := e.picker.Tell(&told)
		message.Evidence = e.judges.tell()
		if len(message.InFlight) > 0 {
			return message, changed, tellBusy
		}
		return message, changed, tellIdle
	}, tellInterval)
}

// tellAll sends messages until the stream ends. Each comes with what is closed when
// there is another one to send, which is sent after the shortest time at the soonest,
// and after the longest that the message comes with if there is nothing new.
func tellAll(stream grpc.ServerStream, next func() (message *peers.Message, changed <-chan struct{}, longest time.Duration), shortest time.Duration) error {
	ctx := stream.Context()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		message, changed, longest := next()
		raw, err := message.Encode()
		if err != nil {
			return err
		}
		if err := stream.SendMsg(wrapperspb.Bytes(raw)); err != nil {
			return err
		}
		timer.Reset(shortest)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
		timer.Reset(longest - shortest)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		case <-changed:
		}
	}
}

// tellAbroad has a router of another region follow what this one has found out, and
// what tenants use through it.
func (e *exchange) tellAbroad(stream grpc.ServerStream) error {
	if err := stream.RecvMsg(&emptypb.Empty{}); err != nil {
		return err
	}
	var told extproc.Told
	return tellAll(stream, func() (*peers.Message, <-chan struct{}, time.Duration) {
		used := e.picker.Used()
		message := e.picker.TellAbroad(&told)
		message.Evidence = e.judges.tell()
		return message, used, tellAbroad
	}, tellAbroadBusy)
}

// set notes an address's state; empty forgets it.
func (e *exchange) set(address, state string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if state == "" {
		delete(e.state, address)
		return
	}
	e.state[address] = state
}

// states is every address that is followed. It is the caller's.
func (e *exchange) states() map[string]string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.state)
}

// isRouter says whether a gRPC method is the routers' own.
func isRouter(method string) bool { return strings.HasPrefix(method, "/"+peersService+"/") }

// isRouterAbroad says whether a caller is a router of another region, and the method
// one that those may call.
func (r *Router) isRouterAbroad(who identity.ID, method string) bool {
	return who == routerOf(fleet.Region(who.Region)) && who.Region != string(r.config.Region) &&
		method == "/"+peersService+"/"+abroadStream.StreamName
}

// routerOf is every router's identity in a region.
func routerOf(region fleet.Region) identity.ID {
	return identity.ID{Region: string(region), Role: identity.RoleRouter}
}
