import io.debezium.engine.ChangeEvent;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.format.Json;
import java.io.FileReader;
import java.io.PrintWriter;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Properties;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

/** Runs Debezium's engine: its arguments are a properties file, the file that gets one line for each record (topic, tab,
 * JSON), and a file whose appearance ends the run. */
public class DebeziumOracle {
    public static void main(String[] arguments) throws Exception {
        Properties properties = new Properties();
        try (FileReader reader = new FileReader(arguments[0], StandardCharsets.UTF_8)) {
            properties.load(reader);
        }
        ExecutorService executor = Executors.newSingleThreadExecutor();
        try (PrintWriter out = new PrintWriter(arguments[1], StandardCharsets.UTF_8);
                DebeziumEngine<ChangeEvent<String, String>> engine = DebeziumEngine.create(Json.class)
                        .using(properties)
                        .using((success, message, error) -> {
                            if (!success) {
                                System.err.println("FAILED " + message);
                                if (error != null) {
                                    error.printStackTrace();
                                }
                            }
                        })
                        .notifying(event -> {
                            if (event.value() != null) {
                                out.println(event.destination() + "\t" + event.value());
                                out.flush();
                            }
                        })
                        .build()) {
            executor.execute(engine);
            while (!Files.exists(Path.of(arguments[2]))) {
                Thread.sleep(100);
            }
        } finally {
            executor.shutdownNow();
        }
    }
}
