// Package cloudwatchlogs keeps a copy of an audit log at CloudWatch Logs, where
// whoever can write the file cannot change what was said before:
//
//	stop, err := cloudwatchlogs.Start(ctx, "mrgc-audit?region=us-east-1", "use1-0", "audit.log", logger)
//	if err != nil { … }
//	defer stop() // ships what is left
//
// Each chain has a log stream, WRITER/HASH with the beginning of its first record's
// hash, and each record is an event: the file's line, so that what [Fetch] gives
// verifies as the file does. A writer that starts again asks the stream how far it
// goes, and ships nothing of a file that does not hold its last record any more:
// that was cut, or written anew, which is an error to look into.
//
// An event's time is when it was shipped, as CloudWatch drops what is older than two
// weeks and an outage may be longer; the record has its own.
//
// The AWS identity of a writer needs logs:CreateLogStream, logs:PutLogEvents and
// logs:GetLogEvents for the group, and should have nothing else; [Fetch] needs the
// last one.
package cloudwatchlogs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs/types"

	"github.com/mrgc/mrgc/internal/audit"
	"github.com/mrgc/mrgc/internal/awsclient"
)

// Config says what is copied, and where to.
type Config struct {
	awsclient.Settings
	// Group is the log group, which must be there. Required.
	Group string
	// Writer names who writes the file, in the stream's name. Required.
	Writer string
	// Path of the file. Required.
	Path string
}

const (
	interval  = 5 * time.Second // at which the file is looked at
	lastWords = 5 * time.Second // for what was recorded as the process ended

	// What one call takes (API reference, PutLogEvents).
	maxBatchBytes = 1 << 20
	eventBytes    = 26
	maxBatch      = 10_000
)

// Names that CloudWatch takes (API reference, CreateLogGroup and CreateLogStream).
// A stream's is the writer's and 17 bytes more.
var (
	groupName  = regexp.MustCompile(`^[.\-_/#A-Za-z0-9]{1,512}$`)
	writerName = regexp.MustCompile(`^[^:*]{1,495}$`)
)

// Shipper copies one file. It is for one goroutine.
type Shipper struct {
	config Config
	client *sdk.Client
	loaded *awsclient.Loaded

	stream string     // of the chain; empty: to be asked how far it goes
	head   audit.Head // shipped
	offset int64      // of what follows it in the file
	last   int64      // time of the last event, in Unix milliseconds
}

// Open prepares to ship, without a request.
func Open(ctx context.Context, config Config) (*Shipper, error) {
	if !writerName.MatchString(config.Writer) {
		return nil, fmt.Errorf("CloudWatch Logs: writer %q: want 1 to 495 bytes without : and *", config.Writer)
	}
	client, loaded, err := open(ctx, config.Settings, config.Group)
	if err != nil {
		return nil, err
	}
	return &Shipper{config: config, client: client, loaded: loaded}, nil
}

func open(ctx context.Context, settings awsclient.Settings, group string) (*sdk.Client, *awsclient.Loaded, error) {
	if !groupName.MatchString(group) {
		return nil, nil, fmt.Errorf("CloudWatch log group %q: want 1 to 512 of a-z, A-Z, 0-9 and . - _ / #", group)
	}
	loaded, err := awsclient.Load(ctx, settings)
	if err != nil {
		return nil, nil, fmt.Errorf("CloudWatch Logs: %w", err)
	}
	return sdk.NewFromConfig(loaded.Config), loaded, nil
}

// Close gives the connections back.
func (s *Shipper) Close() { s.loaded.Close() }

// Start ships a file's records in the background, until stop is called, which ships
// what is left. The address is GROUP[?region=REGION&endpoint=URL]; the empty one
// starts nothing. What fails is said once, and tried again.
func Start(ctx context.Context, address, writer, path string, log *slog.Logger) (stop func(), err error) {
	if address == "" {
		return func() {}, nil
	}
	at, err := awsclient.ParseAddress(address)
	if err != nil {
		return nil, fmt.Errorf("CloudWatch log group %q: %w", address, err)
	}
	s, err := Open(ctx, Config{Settings: at.Settings, Group: at.Name, Writer: writer, Path: path})
	if err != nil {
		return nil, err
	}
	running, end := context.WithCancel(context.WithoutCancel(ctx)) // what ends ctx is recorded, too
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer s.Close()
		s.run(running, log)
	}()
	return func() { end(); <-done }, nil
}

func (s *Shipper) run(ctx context.Context, log *slog.Logger) {
	var failing string
	ship := func(ctx context.Context) {
		err := s.Ship(ctx)
		switch {
		case ctx.Err() != nil: // the last one says what it has come to
		case err == nil && failing != "":
			log.Info("the audit log is copied again", "to", s.stream)
			failing = ""
		case err != nil && err.Error() != failing:
			log.Error("AUDIT LOG IS NOT COPIED", "error", err)
			failing = err.Error()
		}
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		ship(ctx)
		select {
		case <-ctx.Done():
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
			defer cancel()
			ship(ctx)
			return
		case <-ticker.C:
		}
	}
}

// Ship ships what the file holds and the stream does not. After an error the next
// call begins with what the stream says that it has; where that is late to say, some
// records are there twice.
func (s *Shipper) Ship(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			s.stream = ""
			err = fmt.Errorf("audit log %s to CloudWatch log group %s: %w", s.config.Path, s.config.Group, err)
		}
	}()
	file, err := os.Open(s.config.Path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // it was read
	if s.stream == "" {
		if err := s.begin(ctx, file); err != nil {
			return err
		}
	}
	if info, err := file.Stat(); err != nil || info.Size() < s.offset {
		return errors.Join(err, fmt.Errorf("the file was cut: record %d was shipped and is not there", s.head.Sequence))
	}
	if _, err := file.Seek(s.offset, io.SeekStart); err != nil {
		return err
	}
	return s.shipRest(ctx, audit.NewReader(file, s.head))
}

// begin finds out how far the stream goes, and the place in the file.
func (s *Shipper) begin(ctx context.Context, file io.Reader) error {
	s.head, s.offset = audit.Head{}, 0
	chain := audit.NewReader(file, s.head)
	_, line, err := chain.Next()
	if isEnd(err) {
		return nil // nothing was recorded yet
	}
	if err != nil {
		return err
	}
	stream := s.config.Writer + "/" + chain.Head().Hash[:16]
	if err := s.make(ctx, stream); err != nil {
		return err
	}
	shipped, err := s.shipped(ctx, stream)
	if err != nil {
		return err
	}
	for chain.Head().Sequence <= shipped.Sequence {
		s.head, s.offset = chain.Head(), s.offset+int64(len(line))+1
		if _, line, err = chain.Next(); isEnd(err) {
			break
		} else if err != nil {
			return err
		}
	}
	if s.head != shipped {
		return fmt.Errorf("stream %s goes to record %s, and the file has another one there, or ends before: it was cut, or written anew", stream, shipped)
	}
	s.stream = stream
	return nil
}

// isEnd says whether a chain ends here, maybe in the midst of a line that is being written.
func isEnd(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

func (s *Shipper) make(ctx context.Context, stream string) error {
	_, err := s.client.CreateLogStream(ctx, &sdk.CreateLogStreamInput{LogGroupName: &s.config.Group, LogStreamName: &stream})
	var exists *types.ResourceAlreadyExistsException
	var noGroup *types.ResourceNotFoundException
	switch {
	case errors.As(err, &exists):
		return nil
	case errors.As(err, &noGroup):
		return fmt.Errorf("the log group is not there (aws logs create-log-group makes it): %w", err)
	}
	return err
}

// shipped is the head of what a stream holds: the last of its newest events, as some
// may be there twice.
func (s *Shipper) shipped(ctx context.Context, stream string) (head audit.Head, err error) {
	input := sdk.GetLogEventsInput{LogGroupName: &s.config.Group, LogStreamName: &stream, StartFromHead: aws.Bool(false)}
	for {
		page, err := s.client.GetLogEvents(ctx, &input)
		if err != nil {
			return head, err
		}
		for _, event := range page.Events {
			of, err := audit.HeadOf([]byte(aws.ToString(event.Message)))
			if err != nil {
				return head, fmt.Errorf("stream %s: %w", stream, err)
			}
			if of.Sequence > head.Sequence {
				head = of
			}
			s.last = max(s.last, aws.ToInt64(event.Timestamp))
		}
		// Pages may be empty while there are more of them; the last one names itself.
		before := aws.ToString(page.NextBackwardToken)
		if len(page.Events) > 0 || before == "" || before == aws.ToString(input.NextToken) {
			return head, nil
		}
		input.NextToken = &before
	}
}

// shipRest ships what is left of a chain.
func (s *Shipper) shipRest(ctx context.Context, chain *audit.Reader) error {
	var batch []types.InputLogEvent
	head, offset, size := s.head, s.offset, 0
	put := func() error {
		if len(batch) == 0 {
			return nil
		}
		if err := s.put(ctx, batch); err != nil {
			return err
		}
		s.head, s.offset = head, offset
		batch, size = nil, 0
		return nil
	}
	for {
		_, line, err := chain.Next()
		if isEnd(err) {
			return put()
		}
		if err != nil {
			return errors.Join(put(), err)
		}
		if len(batch) == maxBatch || size+len(line)+eventBytes > maxBatchBytes {
			if err := put(); err != nil {
				return err
			}
		}
		// One by one, so that CloudWatch keeps them in their order.
		s.last = max(s.last+1, time.Now().UnixMilli())
		batch = append(batch, types.InputLogEvent{Message: aws.String(string(line)), Timestamp: aws.Int64(s.last)})
		head, offset, size = chain.Head(), offset+int64(len(line))+1, size+len(line)+eventBytes
	}
}

func (s *Shipper) put(ctx context.Context, batch []types.InputLogEvent) error {
	out, err := s.client.PutLogEvents(ctx, &sdk.PutLogEventsInput{LogGroupName: &s.config.Group, LogStreamName: &s.stream, LogEvents: batch})
	if err != nil {
		return err
	}
	if out.RejectedLogEventsInfo != nil {
		return errors.New("CloudWatch took records for too old or too new: this machine's clock is wrong")
	}
	return nil
}

// Fetch writes a stream's records as lines, in the order of the chain and each once,
// for [audit.Verify]. Two different records of one number are an error: two processes
// wrote the stream.
func Fetch(ctx context.Context, settings awsclient.Settings, group, stream string, w io.Writer) error {
	client, loaded, err := open(ctx, settings, group)
	if err != nil {
		return err
	}
	defer loaded.Close()
	input := sdk.GetLogEventsInput{LogGroupName: &group, LogStreamName: &stream, StartFromHead: aws.Bool(true)}
	seen := map[uint64]string{}
	for {
		page, err := client.GetLogEvents(ctx, &input)
		if err != nil {
			return fmt.Errorf("CloudWatch log group %s, stream %s: %w", group, stream, err)
		}
		for _, event := range page.Events {
			line := aws.ToString(event.Message)
			head, err := audit.HeadOf([]byte(line))
			if err != nil {
				return fmt.Errorf("stream %s: %w", stream, err)
			}
			if hash, ok := seen[head.Sequence]; ok && hash != head.Hash {
				return fmt.Errorf("stream %s has two records %d: %s and %s", stream, head.Sequence, hash, head.Hash)
			} else if ok {
				continue
			}
			seen[head.Sequence] = head.Hash
			if _, err := fmt.Fprintln(w, line); err != nil {
				return err
			}
		}
		next := aws.ToString(page.NextForwardToken)
		if next == "" || next == aws.ToString(input.NextToken) {
			return nil
		}
		input.NextToken = &next
	}
}
