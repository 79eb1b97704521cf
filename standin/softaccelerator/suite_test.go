package softaccelerator_test

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	sdk "github.com/aws/aws-sdk-go-v2/service/globalaccelerator"
	"github.com/aws/aws-sdk-go-v2/service/globalaccelerator/types"
	"github.com/aws/smithy-go"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gleak"

	"github.com/mrgc/mrgc/internal/testclock"
	"github.com/mrgc/mrgc/standin/sigv4"
	"github.com/mrgc/mrgc/standin/softaccelerator"
)

func TestSoftAccelerator(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "standin/softaccelerator")
}

const eventually = 10 * time.Second

// regions in the order of nearness to the first client; to the second it is reversed.
var regions = []string{"us-east-1", "us-east-2", "us-west-2"}

const (
	east = iota // a client near us-east-1
	west        // a client near us-west-2
)

// door is a region's: it says its region's name to whoever connects, then repeats what
// it is told, by the line. Beside it is what health checks ask.
type door struct {
	region  string
	address string
	well    atomic.Bool
	close   func() // the door, and the connections through it; checks still pass
}

func openDoor(region string) *door {
	GinkgoHelper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	Expect(err).NotTo(HaveOccurred())
	d := &door{region: region, address: listener.Addr().String()}
	d.well.Store(true)
	var mu sync.Mutex
	var conns []net.Conn
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			serving.Go(func() { d.serve(conn) })
		}
	})
	d.close = func() {
		_ = listener.Close()
		mu.Lock()
		for _, conn := range conns {
			_ = conn.Close()
		}
		mu.Unlock()
		serving.Wait()
	}
	DeferCleanup(d.close)
	return d
}

func (d *door) serve(conn net.Conn) {
	defer conn.Close()
	_, _ = conn.Write([]byte(d.region + "\n"))
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		_, _ = conn.Write([]byte(lines.Text() + "\n"))
	}
	_, _ = conn.Write([]byte("bye\n")) // reaches a client that has closed its half only
}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/healthz" || !d.well.Load() {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
}

// world is an accelerator in front of three doors. Its checks are each 10 ms; its clock
// goes when it is told to.
type world struct {
	*softaccelerator.Service
	doors       map[string]*door
	clients     []string // addresses
	url         string
	credentials sigv4.Credentials
	clock       *testclock.Clock
	stop        func() // and wait

	mu     sync.Mutex
	random float64 // guarded by mu
}

const (
	deploy = 5 * time.Second
	back   = 30 * time.Second
)

func newWorld(change ...func(*softaccelerator.Config)) *world {
	GinkgoHelper()
	DeferCleanup(func(before []gleak.Goroutine) {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		Eventually(gleak.Goroutines).WithTimeout(eventually).ShouldNot(gleak.HaveLeaked(before))
	}, gleak.Goroutines())
	w := &world{doors: map[string]*door{}, credentials: sigv4.NewCredentials(), clock: testclock.At(time.Now())}
	config := softaccelerator.Config{
		Credentials: w.credentials, Second: time.Millisecond, Deploy: deploy, Return: back, Now: w.clock.Now, Random: w.draw,
	}
	for _, region := range regions {
		d := openDoor(region)
		checks := httptest.NewServer(d)
		DeferCleanup(checks.Close)
		w.doors[region] = d
		config.Groups = append(config.Groups, softaccelerator.Group{
			Region: region, Endpoints: []softaccelerator.Endpoint{{ID: "arn:" + region, Address: d.address}},
			Check: softaccelerator.Check{
				Protocol: "HTTP", Path: "/healthz", Port: checks.Listener.Addr().(*net.TCPAddr).Port, IntervalSeconds: 10,
			},
		})
	}
	for _, nearest := range [][]string{regions, {"us-west-2", "us-east-2", "us-east-1"}} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		Expect(err).NotTo(HaveOccurred())
		w.clients = append(w.clients, listener.Addr().String())
		config.Clients = append(config.Clients, softaccelerator.Client{Nearest: nearest, Listener: listener})
	}
	for _, f := range change {
		f(&config)
	}
	var err error
	w.Service, err = softaccelerator.New(config)
	Expect(err).NotTo(HaveOccurred())
	server := httptest.NewServer(w.Service)
	DeferCleanup(server.Close)
	w.url = server.URL
	ctx, stop := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- w.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		stop()
		Expect(<-ran).To(Succeed())
	})
	DeferCleanup(w.stop)
	return w
}

func (w *world) draw() float64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.random
}

// drawn has every draw give a number from now on.
func (w *world) drawn(random float64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.random = random
}

// api is the SDK's own client. edit may change what is on its way.
func (w *world) api(edit ...func(*http.Request)) *sdk.Client {
	return sdk.New(sdk.Options{
		BaseEndpoint: aws.String(w.url), Region: softaccelerator.HomeRegion, RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider(w.credentials.AccessKeyID, w.credentials.SecretAccessKey, ""),
		HTTPClient: &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			for _, f := range edit {
				f(r)
			}
			return http.DefaultTransport.RoundTrip(r)
		})},
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// code is the API's code of an error; empty for none.
func code(err error) string {
	GinkgoHelper()
	if err == nil {
		return ""
	}
	var api smithy.APIError
	Expect(errors.As(err, &api)).To(BeTrue(), "%v", err)
	return api.ErrorCode()
}

func groupARN(region string) *string {
	GinkgoHelper()
	for number, name := range regions {
		if name == region {
			return aws.String(softaccelerator.GroupARN(number))
		}
	}
	Fail("no region " + region)
	return nil
}

// dial sets a region's dial, and waits until it is deployed.
func (w *world) dial(ctx context.Context, region string, percent float32) {
	GinkgoHelper()
	_, err := w.api().UpdateEndpointGroup(ctx, &sdk.UpdateEndpointGroupInput{EndpointGroupArn: groupARN(region), TrafficDialPercentage: aws.Float32(percent)})
	Expect(err).NotTo(HaveOccurred())
	w.clock.Advance(deploy)
}

func (w *world) status(ctx context.Context) types.AcceleratorStatus {
	GinkgoHelper()
	out, err := w.api().DescribeAccelerator(ctx, &sdk.DescribeAcceleratorInput{AcceleratorArn: aws.String(softaccelerator.AcceleratorARN)})
	Expect(err).NotTo(HaveOccurred())
	return out.Accelerator.Status
}

// expectHealth waits until a region's endpoint is seen so.
func (w *world) expectHealth(ctx context.Context, region string, state types.HealthState) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		out, err := w.api().DescribeEndpointGroup(ctx, &sdk.DescribeEndpointGroupInput{EndpointGroupArn: groupARN(region)})
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(out.EndpointGroup.EndpointDescriptions[0].HealthState).To(Equal(state))
	}).WithTimeout(eventually).WithPolling(5 * time.Millisecond).Should(Succeed())
}

// ready waits until all are healthy.
func (w *world) ready(ctx context.Context) *world {
	GinkgoHelper()
	for _, region := range regions {
		w.expectHealth(ctx, region, types.HealthStateHealthy)
	}
	return w
}

// connection is a client's.
type connection struct {
	net.Conn
	lines *bufio.Reader
}

func (w *world) connect(client int) *connection {
	GinkgoHelper()
	conn, err := net.Dial("tcp", w.clients[client])
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() { _ = conn.Close() })
	Expect(conn.SetDeadline(time.Now().Add(eventually))).To(Succeed())
	return &connection{conn, bufio.NewReader(conn)}
}

// line reads one.
func (c *connection) line() (string, error) {
	line, err := c.lines.ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

// repeats says whether the connection still leads to somebody.
func (c *connection) repeats(text string) bool {
	_, err := c.Write([]byte(text + "\n"))
	if err != nil {
		return false
	}
	line, err := c.line()
	return err == nil && line == text
}

// reached gives the region that a new connection leads to.
func (w *world) reached(client int) string {
	GinkgoHelper()
	c := w.connect(client)
	defer c.Close()
	region, err := c.line()
	Expect(err).NotTo(HaveOccurred())
	return region
}
