package cloudwatchlogs_test

import (
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/credentials"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/awsclient"
)

// logs answers in the place of CloudWatch Logs, by its JSON 1.1 protocol, and holds
// to the limits of its API reference.
type logs struct {
	url string

	mu      sync.Mutex
	streams map[string][]event // guarded by mu; the group's
	calls   []string           // guarded by mu: operations, in order
	// lose has the next PutLogEvents take effect and answer 500, that many times.
	lose int // guarded by mu
	// pageEvents is how many events a page has, after an empty one.
	pageEvents int
}

type event struct {
	Message   string `json:"message"`
	Timestamp int64  `json:"timestamp"`
}

func serveLogs() *logs {
	l := &logs{streams: map[string][]event{}, pageEvents: 3}
	server := httptest.NewServer(l)
	DeferCleanup(server.Close)
	l.url = server.URL
	return l
}

func (l *logs) settings() awsclient.Settings {
	return awsclient.Settings{
		Region: "us-west-2", Endpoint: l.url, Credentials: credentials.NewStaticCredentialsProvider("local", "local", ""),
	}
}

// lines are a stream's messages.
func (l *logs) lines(stream string) (all []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.streams[stream] {
		all = append(all, e.Message)
	}
	return all
}

func (l *logs) names() (all []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name := range l.streams {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

func (l *logs) count(operation string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, call := range l.calls {
		if call == operation {
			n++
		}
	}
	return n
}

type input struct {
	Group         string  `json:"logGroupName"`
	Stream        string  `json:"logStreamName"`
	Events        []event `json:"logEvents"`
	NextToken     string  `json:"nextToken"`
	StartFromHead bool    `json:"startFromHead"`
}

func (l *logs) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer GinkgoRecover()
	l.mu.Lock()
	defer l.mu.Unlock()
	Expect(r.Header.Get("Authorization")).To(ContainSubstring("/us-west-2/logs/aws4_request"))
	var body io.Reader = r.Body
	if r.Header.Get("Content-Encoding") == "gzip" {
		unpacked, err := gzip.NewReader(r.Body)
		Expect(err).NotTo(HaveOccurred())
		body = unpacked
	}
	var in input
	Expect(json.NewDecoder(body).Decode(&in)).To(Succeed())
	operation := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "Logs_20140328.")
	l.calls = append(l.calls, operation)
	if in.Group != "audit" {
		refuse(w, "ResourceNotFoundException")
		return
	}
	_, exists := l.streams[in.Stream]
	switch {
	case operation == "CreateLogStream" && exists:
		refuse(w, "ResourceAlreadyExistsException")
	case operation == "CreateLogStream":
		l.streams[in.Stream] = nil
		answer(w, map[string]any{})
	case !exists:
		refuse(w, "ResourceNotFoundException")
	case operation == "PutLogEvents":
		l.put(w, in)
	case operation == "GetLogEvents":
		l.get(w, in)
	default:
		Fail("operation " + operation)
	}
}

func (l *logs) put(w http.ResponseWriter, in input) {
	size := 0
	for i, e := range in.Events {
		size += len(e.Message) + 26
		Expect(i == 0 || in.Events[i-1].Timestamp <= e.Timestamp).To(BeTrue(), "chronological order")
	}
	Expect(size).To(And(BeNumerically(">", 0), BeNumerically("<=", 1<<20)))
	Expect(len(in.Events)).To(BeNumerically("<=", 10_000))
	l.streams[in.Stream] = append(l.streams[in.Stream], in.Events...)
	slices.SortStableFunc(l.streams[in.Stream], func(a, b event) int { return int(a.Timestamp - b.Timestamp) })
	if l.lose > 0 {
		l.lose--
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	answer(w, map[string]any{})
}

// get gives pages of a few events, each after an empty one; a token is a number of
// half pages.
func (l *logs) get(w http.ResponseWriter, in input) {
	events := l.streams[in.Stream]
	at := 0
	if in.NextToken != "" {
		var err error
		at, err = strconv.Atoi(in.NextToken)
		Expect(err).NotTo(HaveOccurred())
	}
	var page []event
	last := at/2*l.pageEvents >= len(events)
	if at%2 == 1 && !last {
		from := at / 2 * l.pageEvents
		to := min(from+l.pageEvents, len(events))
		if !in.StartFromHead {
			from, to = len(events)-to, len(events)-from
		}
		page = events[from:to]
	}
	next := strconv.Itoa(at + 1)
	if last {
		next = strconv.Itoa(at)
	}
	answer(w, map[string]any{"events": page, "nextForwardToken": next, "nextBackwardToken": next})
}

func answer(w http.ResponseWriter, out any) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	Expect(json.NewEncoder(w).Encode(out)).To(Succeed())
}

func refuse(w http.ResponseWriter, code string) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.WriteHeader(http.StatusBadRequest)
	_, _ = io.WriteString(w, `{"__type":"`+code+`","message":"so it is"}`)
}
